"""The live page: one study, drawn from the database again whenever something in it has changed.

It reads and never writes, needs no network, and answers this machine only: it has no password, so it binds to a
loopback address, knows itself by loopback names alone (a web page elsewhere cannot reach it by rebinding its own name),
and refuses requests that another page sends.
"""

from __future__ import annotations

import html
import json
import logging
import socket
import sys
import webbrowser
from typing import Any
from urllib.parse import urlsplit

import dash
import flask
from dash import dcc
from dash import html as tags
from dash.dependencies import Input, Output, State
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.report import GRAPH_CONFIG, STYLE
from mnet_search.dashboards.snapshot import Table, findings, front_table, overview, take
from mnet_search.models.arch import MnetError
from mnet_search.studies.store import Store, Summary

LOOPBACK = ("127.0.0.1", "localhost")  # not ::1, which werkzeug cannot name among trusted hosts
POLL_MS = 2000

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>{%metas%}<title>{%title%}</title>{%favicon%}{%css%}<style>STYLE</style></head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body>
</html>
"""

LIVE_STYLE = """
.top { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: baseline; justify-content: space-between; }
.top { margin-bottom: 6px; }
.picker { width: min(100%, 340px); }
.message { border-left: 4px solid #E69F00; padding-left: 10px; margin: 8px 0; }
.message:empty { display: none; }
@media (prefers-color-scheme: dark) {
  :root { --Dash-Fill-Inverse-Strong: #1c2024; --Dash-Text-Strong: #e6e9ec; --Dash-Text-Primary: #e6e9ec; }
  :root { --Dash-Text-Weak: #9ca8b3; --Dash-Stroke-Strong: #586470; --Dash-Stroke-Weak: #313840; }
}
"""


class DashboardError(MnetError):
    """The dashboard cannot be served as asked."""


def create_app(storage_url: str, study: str | None = None) -> dash.Dash:
    """The page as a Dash app; without a study it has a picker. Opens the database only when the page asks."""
    app = dash.Dash(
        "mnet_search.dashboards.app",
        title=_page_title(study),
        update_title="",
        index_string=PAGE.replace("STYLE", STYLE + LIVE_STYLE),
        serve_locally=True,
        include_assets_files=False,
        url_base_pathname="/",  # this and the next: not to be had from environment variables
        enable_mcp=False,
        add_log_handler=False,
        on_error=_show_error,
    )
    app.layout = _layout(study)
    _guard(app.server)
    _connect(app, storage_url, study)
    return app


def serve(
    storage_url: str, study: str | None = None, host: str = "127.0.0.1", port: int = 8050, open_browser: bool = False
) -> None:
    """Serve the page until interrupted. DashboardError for an address that is not loopback, or a port that is taken."""
    server = bind(create_app(storage_url, study), host, port)
    url = f"http://{host}:{server.port}/"
    print(f"dashboard: {url} (Ctrl-C stops it)", file=sys.stderr, flush=True)
    if open_browser:
        webbrowser.open(url)
    server.serve_forever()


def bind(app: dash.Dash, host: str, port: int) -> BaseWSGIServer:
    """A server that listens already; port 0 takes a free one. Environment variables (HOST, PORT) are not looked at."""
    if host not in LOOPBACK:
        raise DashboardError(
            f"the dashboard has no password yet and serves this machine only: host {host!r} is not one of "
            f"{', '.join(LOOPBACK)}; from elsewhere, forward the port (ssh -L {port}:127.0.0.1:{port} THIS_MACHINE)"
        )
    if not 0 <= port <= 65535:
        raise DashboardError(f"port {port} is not possible: choose one from 1 to 65535, or 0 for any free one")
    # Bound here, since werkzeug would end the process where the port is taken.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(128)
        except OSError as error:
            advice = "choose another with --port, or --port 0 for any free one"
            raise DashboardError(f"cannot listen on {host} port {port} ({error.strerror}): {advice}") from error
        return make_server(host, port, app.server, threaded=True, request_handler=_QuietHandler, fd=listener.fileno())


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """A page that polls would fill the terminal."""


def _page_title(study: str | None) -> str:
    # Dash writes the title into the page as it stands, and looks for {%...%} in it.
    text = f"{study} · mnet-search" if study else "mnet-search"
    return html.escape(text).replace("{%", "{&#37;")


def _guard(server: flask.Flask) -> None:
    server.config["TRUSTED_HOSTS"] = list(LOOPBACK)

    @server.before_request
    def refuse_other_pages() -> flask.Response | None:
        request = flask.request
        if request.method in ("GET", "HEAD", "OPTIONS"):
            return None
        origin = request.headers.get("Origin")
        foreign = origin is not None and urlsplit(origin).netloc != request.host
        if foreign or request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return flask.Response("refused: this request was sent by another page\n", 403, mimetype="text/plain")
        return None

    @server.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers.update(HEADERS)
        return response


# --- The page ---


def _layout(study: str | None) -> tags.Main:
    options = [] if study is None else [study]
    picker = dcc.Dropdown(options, study, id="picker", clearable=False, placeholder="study")
    plots = [
        _card(
            plot.title, dcc.Graph(id=f"plot-{name}", config=GRAPH_CONFIG, style={"height": "420px"}), name == "curves"
        )
        for name, plot in PLOTS.items()
    ]
    table = _card("The front", tags.Div(id="front", className="scroll long"), True)
    return tags.Main(
        [
            dcc.Interval(id="tick", interval=POLL_MS),
            dcc.Store(id="seen"),
            tags.Div(
                [
                    tags.H1(study or "mnet-search", id="heading"),
                    tags.Div(picker, className="picker", hidden=study is not None),
                ],
                className="top",
            ),
            tags.P(id="progress", className="soft"),
            tags.Div(id="message", className="message", role="status"),
            tags.Div([tags.Div(id="words"), tags.Div([*plots, table], className="cards")], id="content", hidden=True),
        ]
    )


def _card(title: str, body: Any, wide: bool) -> tags.Section:
    return tags.Section([tags.H2(title), body], className="card wide" if wide else "card")


def _html_table(table: Table) -> Any:
    if not table.rows:
        return "no finished trials yet"
    head = tags.Thead(tags.Tr([tags.Th(column) for column in table.columns]))
    return tags.Table([head, tags.Tbody([tags.Tr([tags.Td(cell) for cell in row]) for row in table.rows])])


def progress(summary: Summary, n_front: int) -> str:
    """How far the search is, in one line."""
    counts = {
        "on the front": n_front,
        "running": summary.n_running,
        "stopped early": summary.n_stopped,
        "failed": summary.n_failed,
    }
    parts = [f"{summary.n_finished:,} of {summary.n_total_asked:,} trials finished"]
    parts += [f"{count:,} {name}" for name, count in counts.items() if count]
    parts.append("the search is running" if summary.active else "no search is running")
    return " · ".join([*parts, f"last activity {summary.last_activity:%Y-%m-%d %H:%M:%S}"])


def empty_message(summary: Summary) -> str:
    """What to do or expect while there is nothing to draw; empty once there is."""
    if summary.n_finished:
        return ""
    if summary.active:
        return f"no finished trials yet: {summary.n_running} running; this page follows the search by itself"
    failed = f"; {summary.n_failed} failed (mnet-search show {summary.name} says why)" if summary.n_failed else ""
    return f"no finished trials yet, and no search is running{failed}: start it with mnet-search resume {summary.name}"


# --- Following the database ---


def _connect(app: dash.Dash, storage_url: str, study: str | None) -> None:
    if study is None:

        @app.callback(
            Output("picker", "options"), Output("picker", "value"),
            Input("tick", "n_intervals"), State("picker", "options"), State("picker", "value"),
        )  # fmt: skip
        def list_studies(_: int | None, options: list[str], value: str | None) -> tuple[Any, Any]:
            try:
                with Store(storage_url) as store:
                    found = sorted(store.studies(), key=lambda summary: summary.last_activity, reverse=True)
            except MnetError:
                return dash.no_update, dash.no_update  # `follow` says what is wrong
            names = [summary.name for summary in found]
            chosen = value if value in names else next(iter(names), None)
            return (
                names if set(names) != set(options or []) else dash.no_update,
                chosen if chosen != value else dash.no_update,
            )

    @app.callback(
        {
            "heading": Output("heading", "children"),
            "progress": Output("progress", "children"),
            "message": Output("message", "children"),
            "hidden": Output("content", "hidden"),
            "words": Output("words", "children"),
            "front": Output("front", "children"),
            "figures": {name: Output(f"plot-{name}", "figure") for name in PLOTS},
            "seen": Output("seen", "data"),
        },
        Input("tick", "n_intervals"),
        Input("picker", "value"),
        State("seen", "data"),
        # A poll that overtook a slow drawing would make the page drop it, and a large study would never appear.
        running=[(Output("tick", "disabled"), True, False)],
    )
    def follow(_: int | None, chosen: str | None, seen: str | None) -> dict[str, Any]:
        try:
            with Store(storage_url) as store:
                if chosen is None:
                    known = ", ".join(store.names())
                    raise DashboardError(
                        f"pick a study: {known}" if known else "no study yet: start one with mnet-search run SPACE"
                    )
                mark = json.dumps([chosen, store.fingerprint(chosen)], default=str)
                if mark == seen:
                    raise dash.exceptions.PreventUpdate
                return _update(store, chosen, mark)
        except MnetError as error:
            if seen == str(error):
                raise dash.exceptions.PreventUpdate from None
            return _unchanged() | {"progress": "", "message": str(error), "hidden": True, "seen": str(error)}


def _update(store: Store, study: str, mark: str) -> dict[str, Any]:
    summary = store.summary(study)
    snapshot = take(store, study)
    found = overview(snapshot)
    return {
        "heading": study,
        "progress": progress(summary, found.n_front),
        "message": empty_message(summary),
        "hidden": False,
        "words": [tags.P(line) for line in findings(found)],
        "front": _html_table(front_table(snapshot)),
        "figures": {name: plot.draw(snapshot) for name, plot in PLOTS.items()},
        "seen": mark,
    }


def _unchanged() -> dict[str, Any]:
    keys = ("heading", "progress", "message", "hidden", "words", "front", "seen")
    return dict.fromkeys(keys, dash.no_update) | {"figures": dict.fromkeys(PLOTS, dash.no_update)}


def _show_error(error: Exception) -> None:
    """Anything unforeseen: the terminal gets the traceback, the page stays and says so."""
    logging.getLogger(__name__).error("the dashboard could not be drawn", exc_info=error)
    what = f"the page could not be drawn ({type(error).__name__}: {error})"
    dash.set_props("message", {"children": f"{what}; the terminal of the dashboard has the traceback"})
