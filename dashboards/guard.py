"""Who may ask the live page for what: its names, its token, other pages, and what the browser may load.

Loopback needs no password: other machines cannot reach it, a web page elsewhere cannot reach it under a name of its own
(names are checked), and what another page sends is refused. What writes needs the page's own secret besides.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import flask

from mnet_search.models.arch import MnetError

LOOPBACK = ("127.0.0.1", "localhost")  # not ::1, which werkzeug cannot name among trusted hosts
LEAST_TOKEN = 16  # characters
SESSION_HEADER = "X-Mnet-Session"
COOKIE = "mnet_dashboard"
MOST_BODY = 1_000_000  # bytes of a request

OPENING = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>mnet-search</title>
<meta http-equiv="refresh" content="0; url={url}"></head>
<body><p><a href="{url}">Open the dashboard</a></p></body></html>
"""


class DashboardError(MnetError):
    """The dashboard cannot be served as asked."""


@dataclass(frozen=True)
class Secrets:
    """What one run of the server knows: the token that its visitors were given (None where none is needed), the secret
    that its page sends with every action, and the cookie of visitors who came with the token.
    """

    token: str | None = None
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(24))


def check_host(host: str, port: int, token: str | None) -> None:
    """DashboardError for an address that cannot be checked, or that others reach without a token."""
    if token is not None and len(token) < LEAST_TOKEN:
        raise DashboardError(
            f"--token of {len(token)} characters: at least {LEAST_TOKEN} that nobody can guess, such as "
            f"{secrets.token_urlsafe(18)}"
        )
    if host in LOOPBACK:
        return
    if not host or ":" in host or _is_any(host):
        raise DashboardError(
            f"host {host!r}: name one IPv4 address of this machine, or its name; the page answers to no other, so that "
            "a web page elsewhere cannot reach it under a name of its own"
        )
    if token is None:
        raise DashboardError(
            f"host {host!r} lets other machines reach the page: give a token that they need, with --token TEXT or "
            f"MNET_DASHBOARD_TOKEN (such as {secrets.token_urlsafe(18)}); or stay on {LOOPBACK[0]} and forward the "
            f"port (ssh -L {port}:127.0.0.1:{port} THIS_MACHINE)"
        )


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def policy(script_hashes: Sequence[str]) -> str:
    """The Content-Security-Policy: nothing from outside, and of scripts inside the page only those known by hash.

    Styles inside the page are allowed: plotly sets them while it draws.
    """
    return "; ".join(
        [
            "default-src 'self'",
            " ".join(["script-src 'self'", *script_hashes]),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


def install(server: flask.Flask, known: Secrets, content_policy: str) -> None:
    """Check every request of a server, and add what browsers must hold themselves to."""
    server.config["TRUSTED_HOSTS"] = list(LOOPBACK)
    server.config["MAX_CONTENT_LENGTH"] = MOST_BODY
    headers = {
        "Content-Security-Policy": content_policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }

    @server.before_request
    def check() -> flask.Response | None:
        return _foreign(flask.request) or _unknown(flask.request, known)

    @server.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers.update(headers)
        return response


def _foreign(request: flask.Request) -> flask.Response | None:
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    origin = request.headers.get("Origin")
    foreign = origin is not None and origin.partition("://")[2] != request.host
    if foreign or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return _words("refused: this request was sent by another page", 403)
    return None


def _unknown(request: flask.Request, known: Secrets) -> flask.Response | None:
    """What a visitor without the cookie gets: with the token a cookie and an address without it, else words."""
    if known.token is None:
        return None
    name = f"{COOKIE}_{hashlib.sha256(known.cookie.encode()).hexdigest()[:8]}"  # cookies know of no ports
    if same(request.cookies.get(name, ""), known.cookie):
        return None
    if request.method == "GET" and same(request.args.get("token", ""), known.token):
        left = [(key, value) for key, value in parse_qsl(request.query_string.decode()) if key != "token"]
        url = html.escape(request.path + (f"?{urlencode(left)}" if left else ""))
        # A page and no redirect: a browser that came from elsewhere sends a strict cookie only from here on.
        response = flask.Response(OPENING.format(url=url), mimetype="text/html")
        response.set_cookie(name, known.cookie, httponly=True, samesite="Strict")
        response.headers["Cache-Control"] = "no-store"
        return response
    return _words(
        "this dashboard needs its token: open it once as /?token=TOKEN, with the token that it was started with", 401
    )


def is_ours(request: flask.Request, known: Secrets) -> bool:
    """Whether a request comes from a page that this run of the server made."""
    return same(request.headers.get(SESSION_HEADER, ""), known.session)


def same(given: str, known: str) -> bool:
    """Compared in a time that tells nothing."""
    return hmac.compare_digest(given.encode(), known.encode())


def refused() -> flask.Response:
    """The answer to an action that no page of this run asked for."""
    return _words("refused: this page is of an earlier run of the dashboard, or of another; load it anew", 403)


def _words(text: str, status: int) -> flask.Response:
    return flask.Response(f"{text}\n", status, mimetype="text/plain")
