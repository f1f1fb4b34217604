"""The live page: the studies of a database, drawn from what the server keeps of them and only where something changed.

The address of the page says what is shown (`view_state.py`); `views.py` draws it; a poll brings what is new into the
page as it stands. Nothing is loaded from elsewhere, and nothing is written but by `actions.py`.
"""

from __future__ import annotations

import html
import ipaddress
import logging
import socket
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import dash
import flask
from dash import dcc
from dash import html as tags
from dash.dependencies import ALL, Input, Output, State
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from mnet_search.dashboards.actions import act
from mnet_search.dashboards.guard import DashboardError, Secrets, check_host, install, is_ours, policy, refused
from mnet_search.dashboards.live import LiveStudies
from mnet_search.dashboards.page_parts import attributes, block, keep_zoom, take_apart
from mnet_search.dashboards.page_script import SCRIPT
from mnet_search.dashboards.page_style import STYLE
from mnet_search.dashboards.scene import brushed
from mnet_search.dashboards.view_state import from_query
from mnet_search.dashboards.view_trials import csv_of
from mnet_search.dashboards.views import Page, draw_failure, draw_page, look
from mnet_search.models.arch import MnetError

POLL_MS = 2000
AROUND = ("heading", "pickers", "navigation", "progress", "bar", "problems")

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}
<link rel="stylesheet" href="/page.css"><script src="/page.js" defer></script></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>
"""


@dataclass
class Served:
    """What one server keeps: the studies, its secrets, and how often something was written, which makes pages look
    again.
    """

    storage_url: str
    study: str | None
    secrets: Secrets
    live: LiveStudies
    n_written: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def create_app(storage_url: str, study: str | None = None, token: str | None = None) -> dash.Dash:
    """The page as a Dash app. `study` is shown where the address names none; with a `token`, visitors need it. Opens
    the database only when the page asks.
    """
    app = dash.Dash(
        "mnet_search.dashboards.app",
        title=_page_title(study),
        update_title="",
        index_string=PAGE,
        serve_locally=True,
        include_assets_files=False,
        url_base_pathname="/",  # this and the next: not to be had from environment variables
        enable_mcp=False,
        add_log_handler=False,
        on_error=_show_error,
    )
    served = Served(storage_url, study, Secrets(token), LiveStudies(storage_url))
    app.layout = _layout(served)
    _connect(app, served)
    _serve_files(app.server, served)
    app.server.config["MNET_SECRETS"] = served.secrets
    install(app.server, served.secrets, policy(app.csp_hashes()))
    return app


def serve(
    storage_url: str,
    study: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8050,
    open_browser: bool = False,
    token: str | None = None,
) -> None:
    """Serve the page until interrupted. DashboardError for an address that others reach without a token, or a port that
    is taken.
    """
    server = bind(create_app(storage_url, study, token), host, port)
    url = f"http://{host}:{server.port}/"
    how = ", with ?token=TOKEN the first time" if token else ""
    print(f"dashboard: {url} (Ctrl-C stops it{how})", file=sys.stderr, flush=True)
    if open_browser:
        webbrowser.open(f"{url}?token={quote(token)}" if token else url)
    server.serve_forever()


def bind(app: dash.Dash, host: str, port: int) -> BaseWSGIServer:
    """A server that listens already; port 0 takes a free one. Environment variables (HOST, PORT) are not looked at."""
    check_host(host, port, app.server.config["MNET_SECRETS"].token)
    if not 0 <= port <= 65535:
        raise DashboardError(f"port {port} is not possible: choose one from 1 to 65535, or 0 for any free one")
    app.server.config["TRUSTED_HOSTS"] = list(dict.fromkeys([*app.server.config["TRUSTED_HOSTS"], host]))
    # Bound here, since werkzeug would end the process where the port is taken.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            advice = "choose another with --port, or --port 0 for any free one"
            raise DashboardError(f"cannot listen on {host} port {port} ({error.strerror}): {advice}") from error
        bound = listener.getsockname()[0]
        if ipaddress.ip_address(bound).is_unspecified:  # `0`, say, or a name for it
            raise DashboardError(
                f"host {host!r} is every address of this machine ({bound}): name one IPv4 address, or its name; the "
                "page answers to no other"
            )
        return make_server(host, port, app.server, threaded=True, request_handler=_QuietHandler, fd=listener.fileno())


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """A page that polls would fill the terminal."""


def _page_title(study: str | None) -> str:
    # Dash writes the title into the page as it stands, and looks for {%...%} in it.
    text = f"{study} · mnet-search" if study else "mnet-search"
    return html.escape(text).replace("{%", "{&#37;")


# --- The page ---


def _layout(served: Served) -> Any:
    """What stands on every view. The secret of actions is here, where only this page reads it."""
    top = [
        tags.Div([block("heading"), block("pickers", className="row")], className="inner row spread"),
        block("navigation", className="inner"),
    ]
    main = [
        block("progress", className="soft", role="status", **attributes(aria_live="polite")),
        tags.Div(id="said", className="message", role="status", **attributes(aria_live="polite")),
        block("problems"),
        block("bar", className="bar", role="region", **attributes(aria_label="filters")),
        tags.Div(id="page", tabIndex=-1),
    ]
    return tags.Div(
        [
            tags.A("Skip to the view", href="#page", className="skip"),
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="tick", interval=POLL_MS),
            dcc.Store(id="seen"),
            tags.Header(top, className="top"),
            tags.Main(main, id="main"),
        ],
        id="app",
        **attributes(data_session=served.secrets.session, data_study=served.study or ""),
    )


def _serve_files(server: flask.Flask, served: Served) -> None:
    """The page's own script and style, tables as CSV, and the actions."""

    @server.get("/page.js")
    def script() -> flask.Response:
        return flask.Response(SCRIPT, mimetype="text/javascript", headers={"Cache-Control": "no-cache"})

    @server.get("/page.css")
    def style() -> flask.Response:
        return flask.Response(STYLE, mimetype="text/css", headers={"Cache-Control": "no-cache"})

    @server.get("/table.csv")
    def table() -> flask.Response:
        state, _ = from_query(flask.request.query_string.decode(errors="replace"))
        try:
            state, _ = look(state, served.live, served.study)
            snapshot, _ = brushed(served.live.snapshot(state.study)[1], state.brush)
            return flask.Response(csv_of(state, snapshot.frame), mimetype="text/csv")
        except MnetError as error:
            return flask.Response(f"{error}\n", 404, mimetype="text/plain")

    @server.post("/action/<name>")
    def action(name: str) -> flask.Response:
        if not is_ours(flask.request, served.secrets):
            return refused()
        content = flask.request.get_json(silent=True)
        try:
            said = act(served.storage_url, name, content if isinstance(content, Mapping) else {})
        except MnetError as error:
            return _said(str(error), 400)
        with served.lock:
            served.n_written += 1
        return _said(said, 200)


def _said(text: str, status: int) -> flask.Response:
    response = flask.jsonify(said=text)
    response.status_code = status
    return response


# --- Following the address and the database ---


def _connect(app: dash.Dash, served: Served) -> None:
    @app.callback(
        {
            "page": Output("page", "children"),
            "blocks": Output({"live": "block", "name": ALL}, "children"),
            "figures": Output({"live": "figure", "name": ALL}, "figure"),
            "seen": Output("seen", "data"),
        },
        Input("url", "search"),
        Input("tick", "n_intervals"),
        State("seen", "data"),
        State({"live": "figure", "name": ALL}, "relayoutData"),
        # A poll that overtook a slow drawing would make the page drop it, and a large study would never appear.
        running=[(Output("tick", "disabled"), True, False)],
    )
    def follow(search: str | None, _: int | None, seen: dict[str, Any] | None, zooms: list[Any]) -> dict[str, Any]:
        mark, page = _drawn(served, search or "", (seen or {}).get("mark"))
        if page is None:
            raise dash.exceptions.PreventUpdate
        kept = zooms if search == (seen or {}).get("search") else []
        found = _changes(page, mark, seen or {}, dash.ctx.outputs_grouping, kept)
        found["seen"]["search"] = search
        return found


def _drawn(served: Served, search: str, seen: str | None) -> tuple[str, Page | None]:
    """The page as it is now and its mark; no page where that was seen."""
    state, problems = from_query(search)
    try:
        state, of_study = look(state, served.live, served.study)
        mark = f"{search} {of_study} {served.n_written}"
        return mark, None if mark == seen else draw_page(state, served.live, served.storage_url, problems)
    except MnetError as error:
        try:
            studies = served.live.list()
        except MnetError:
            studies = ()
        mark = f"{search} {error} {[summary.name for summary in studies]}"
        return mark, None if mark == seen else draw_failure(state, error, studies)


def _changes(
    page: Page, mark: str, seen: Mapping[str, Any], outputs: Mapping[str, Any], zooms: Sequence[Any]
) -> dict[str, Any]:
    """What of the page differs from what the browser has: the whole view, or parts of it. `zooms` are what visitors did
    last to the axes of its figures, which a new drawing of the same keeps.
    """
    around = take_apart([block(name, *page.around[name]) for name in AROUND])
    parts = take_apart(page.view)
    stays = parts.skeleton == seen.get("skeleton")
    blocks, digests = dict(around.blocks), dict(around.digests)
    if stays:
        blocks |= parts.blocks
        for output, zoom in zip(outputs["figures"], zooms, strict=False):
            if output["id"]["name"] in parts.figures:
                keep_zoom(parts.figures[output["id"]["name"]], zoom)
    digests |= parts.digests
    known = seen.get("digests", {})

    def block_of(name: str) -> Any:
        return blocks[name] if name in blocks and digests[name] != known.get(name) else dash.no_update

    return {
        "page": dash.no_update if stays else page.view,
        "blocks": [block_of(output["id"]["name"]) for output in outputs["blocks"]],
        "figures": [
            parts.figures.get(output["id"]["name"], dash.no_update) if stays else dash.no_update
            for output in outputs["figures"]
        ],
        "seen": {"mark": mark, "skeleton": parts.skeleton, "digests": digests},
    }


def _show_error(error: Exception) -> None:
    """Anything unforeseen: the terminal gets the traceback, the page stays and says so."""
    logging.getLogger(__name__).error("the dashboard could not be drawn", exc_info=error)
    what = f"the page could not be drawn ({type(error).__name__}: {error})"
    dash.set_props("said", {"children": f"{what}; the terminal of the dashboard has the traceback"})
