"""The live page and the report, on a study that the store itself wrote; in a real browser where there is one."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from datetime import datetime

import pytest

from mnet_search.dashboards.app import bind, create_app
from mnet_search.dashboards.report import GRAPH_CONFIG, ReportError, flatten, write_report
from mnet_search.dashboards.snapshot import take
from mnet_search.dashboards.view_study import empty_message, progress
from mnet_search.models.arch import MnetError
from mnet_search.studies.store import Summary

from browser import STUDY, Written, ask, chromium, hover_text, page_of, served, wait_for_points

TOKEN = "a-token-of-twenty-six-chars"


@pytest.fixture
def study(tmp_path):
    """Three trials on the front of accuracy and latency, one behind it, one failed, one running."""
    written = Written(tmp_path)
    for accuracy, latency_ms in ((0.90, 0.4), (0.95, 0.8), (0.97, 1.5), (0.85, 1.0)):
        written.finish(accuracy, latency_ms)
    written.writer.fail(written.begin()[0].trial_id, "loss is NaN at epoch 3")
    written.begin()
    yield written
    written.store.close()


# --- Who may ask ---


def test_only_loopback_is_served_without_a_token(tmp_path, monkeypatch):
    app = create_app(f"sqlite:///{tmp_path / 'none.db'}")
    for host in ("192.168.1.5", "example.org"):
        with pytest.raises(
            MnetError,
            match=rf"host '{host}' lets other machines reach the page: give a token .*--token TEXT or .*ssh -L",
        ):
            bind(app, host, 8050)
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("PORT", "1")
    server = bind(app, "127.0.0.1", 0)
    assert server.socket.getsockname()[0] == "127.0.0.1"
    server.server_close()


def test_names_that_cannot_be_checked_are_refused_with_a_token_too(tmp_path):
    app = create_app(f"sqlite:///{tmp_path / 'none.db'}", token=TOKEN)
    for host in ("0.0.0.0", "::1", "::", ""):
        with pytest.raises(MnetError, match=r"host '.*': name one IPv4 address of this machine"):
            bind(app, host, 8050)
    short = create_app(f"sqlite:///{tmp_path / 'none.db'}", token="short")
    with pytest.raises(MnetError, match=r"--token of 5 characters: at least 16 that nobody can guess, such as \S+"):
        bind(short, "127.0.0.1", 0)


def test_a_token_is_shown_once_and_a_cookie_follows(study):
    with served(study.url, token=TOKEN) as port:
        refused, words = ask(port)
        assert (refused.status, words) == (401, "this dashboard needs its token: open it once as /?token=TOKEN, with "
            "the token that it was started with\n")  # fmt: skip
        for path in ("/?token=wrong", "/?token=", "/_dash-layout", "/page.js", "/table.csv"):
            assert ask(port, path=path)[0].status == 401
        assert ask(port, "POST", f"/_dash-update-component?token={TOKEN}", "{}")[0].status == 401
        answer, page = ask(port, path=f"/?token={TOKEN}&study=a%20b&view=pareto")
        assert answer.status == 200 and TOKEN not in page
        assert 'content="0; url=/?study=a+b&amp;view=pareto"' in page
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        mine = cookie.split(";")[0]
        assert ask(port, Cookie=mine)[0].status == 200
        assert ask(port, path="/_dash-layout", Cookie=mine)[0].status == 200
        assert ask(port, Cookie=mine.split("=")[0] + "=guess")[0].status == 401
        assert ask(port, Cookie=mine, Host="evil.example")[0].status == 400
    with served(study.url, token=TOKEN) as port:
        assert ask(port, Cookie=mine)[0].status == 401, "of an earlier run"


def test_a_port_that_cannot_be_had(tmp_path):
    app = create_app(f"sqlite:///{tmp_path / 'none.db'}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            MnetError, match=rf"cannot listen on 127.0.0.1 port {port} \(Address already in use\): .*--port"
        ):
            bind(app, "127.0.0.1", port)
    with pytest.raises(MnetError, match="port 70000 is not possible: choose one from 1 to 65535"):
        bind(app, "127.0.0.1", 70_000)


def test_foreign_names_and_pages_are_refused(study):
    with served(study.url) as port:
        own = f"127.0.0.1:{port}"
        assert ask(port, Host=own)[0].status == 200
        assert ask(port, Host=f"localhost:{port}")[0].status == 200
        assert ask(port, Host="evil.example")[0].status == 400, "a name that was rebound to this address"
        update, json_type = "/_dash-update-component", "application/json"

        def post(**headers):
            return ask(port, "POST", update, "{}", Content_Type=json_type, Host=own, **headers)[0].status

        for foreign in ("http://evil.example", "null", f"http://evil.example:{port}", "http://127.0.0.1:1"):
            assert post(Origin=foreign) == 403
        assert post(Sec_Fetch_Site="cross-site") == 403
        assert post(Origin=f"http://{own}", Sec_Fetch_Site="same-origin") not in (400, 403)
        policy = ask(port, Host=own)[0].headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert "unsafe" not in scripts and "http" not in scripts


def test_serve_says_where_it_is_and_ends_on_ctrl_c(study):
    code = "import sys; from mnet_search.dashboards.app import serve; serve(sys.argv[1], port=0)"
    command = [sys.executable, "-c", code, study.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        port = re.fullmatch(r"dashboard: http://127.0.0.1:(\d+)/ \(Ctrl-C stops it\)\n", line)[1]
        assert ask(int(port))[0].status == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", ""), "no access log, no traceback"
        assert process.returncode == 0


def test_the_agent_endpoint_of_dash_stays_off(study, monkeypatch):
    monkeypatch.setenv("DASH_MCP_ENABLED", "true")
    with served(study.url) as port:
        answer, _ = ask(port, "POST", "/_mcp", "{}", Content_Type="application/json")
        assert answer.status in (404, 405)


def test_the_name_of_a_study_is_text(study):
    with served(study.url, study.name) as port:
        _, page = ask(port)
        assert (
            "<title>digits &lt;script&gt;alert(&quot;study&quot;)&lt;/script&gt; {&#37;css%} · mnet-search</title>"
            in page
        )
        assert 'alert("study")' not in page
        layout = json.loads(ask(port, path="/_dash-layout")[1])
        assert STUDY in json.dumps(layout, ensure_ascii=False).replace('\\"', '"')


# --- Words ---


def summary_of(**changes):
    when = datetime(2026, 11, 22, 10, 0, 0)
    facts = {
        "name": "s",
        "space": "s",
        "objectives": {},
        "n_finished": 0,
        "n_running": 0,
        "n_failed": 0,
        "n_stopped": 0,
    }
    facts |= {"n_total_asked": 30, "created": when, "last_activity": when, "active": False}
    return Summary(**(facts | changes))


def test_progress_line():
    busy = summary_of(n_finished=12, n_running=2, n_failed=1, active=True)
    assert progress(busy, 5) == (
        "12 of 30 trials finished · 5 on the front · 2 running · 1 failed · the search is running · "
        "last activity 2026-11-22 10:00:00"
    )
    idle = "0 of 30 trials finished · no search is running · last activity 2026-11-22 10:00:00"
    assert progress(summary_of(), 0) == idle


def test_empty_messages_say_what_to_do():
    assert empty_message(summary_of(n_finished=1)) == ""
    assert empty_message(summary_of(n_running=2, active=True)) == (
        "no finished trials yet: 2 running; this page follows the search by itself"
    )
    assert empty_message(summary_of()) == (
        "no finished trials yet, and no search is running: start it with mnet-search resume s"
    )
    assert empty_message(summary_of(n_failed=3)) == (
        "no finished trials yet, and no search is running; 3 failed (mnet-search show s says why): "
        "start it with mnet-search resume s"
    )


# --- The report as a file ---


def test_report_is_one_file_of_text_that_cannot_become_markup(study, tmp_path):
    path = write_report(study.url, study.name, tmp_path / "report.html")
    page = path.read_text()
    assert page.count("* plotly.js v") == 1
    own = re.sub(r"<script>/\*\*.*?</script>", "", page, count=1, flags=re.DOTALL)
    assert len(own) < 200_000, "what is left without plotly.js"
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", own.replace("src=x onerror", "")), (
        "nothing from outside"
    )
    assert 'alert("study")' not in own
    assert "<h1>digits &lt;script&gt;" in own
    assert "&lt;img src=x" in own
    assert "<b>a</b>" not in own
    for text in (
        "<td>95.00 %</td>",
        "<td>0.800 [0.720, 0.960]</td>",
        "Most accurate: trial 2 ",
        "Single runs, no repeats",
    ):
        assert text in own
    assert "<td>data.files</td><td>&lt;b&gt;a&lt;/b&gt;, b</td>" in own


def test_report_of_an_open_store_equals_that_of_its_address(study, tmp_path):
    pages = [write_report(store, study.name, tmp_path / "r.html").read_text() for store in (study.store, study.url)]
    first, second = (re.sub(r"Report of [^<]*", "", page) for page in pages)
    assert first == second


def test_report_that_cannot_be_written_leaves_nothing(study, tmp_path):
    with pytest.raises(
        ReportError, match=r"no folder '.*nowhere' to write the report to: make it, or give another path"
    ):
        write_report(study.url, study.name, tmp_path / "nowhere" / "report.html")
    occupied = tmp_path / "occupied"
    (occupied / "report.html").mkdir(parents=True)
    with pytest.raises(ReportError, match=r"could not write the report to .*report\.html.: Is a directory"):
        write_report(study.url, study.name, occupied / "report.html")
    assert [entry.name for entry in occupied.iterdir()] == ["report.html"]
    with pytest.raises(MnetError, match="no study 'other'"):
        write_report(study.url, "other", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_flattened_provenance():
    rows = list(flatten({"a": 1, "b": {"c": [1, 2], "d": {"e": None}}}))
    assert rows == [("a", "1"), ("b.c", "1, 2"), ("b.d.e", "None")]


def test_snapshot_of_a_store(study):
    snapshot = take(study.store, study.name)
    assert snapshot.front()["number"].is_unique
    assert (len(snapshot.frame), len(snapshot.finished()), len(snapshot.curves)) == (6, 4, 6)
    assert snapshot.objectives == {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"}
    assert "family: mobilenet_v1" in snapshot.space_text


# --- In a browser ---


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def assert_front(page, plot):
    wait_for_points(page, plot, 3)
    front = page.evaluate(f"document.querySelector('{plot}').data.at(-1)")
    assert front["name"] == "front of accuracy and latency (3)"
    assert (front["customdata"], front["x"], front["y"]) == ([0, 1, 2], [0.4, 0.8, 1.5], [90.0, 95.0, 97.0])


def assert_hover(text, study):
    row = study.store and take(study.store, study.name).frame.iloc[0]
    for part in (
        "trial 0",
        row["arch_id"],
        "mobilenet_v1",
        f"width: {row['param.width']:g}",
        f"depth: {row['param.depth']}",
    ):
        assert part in text
    for part in ("accuracy: 90.00 %", "latency: 0.400 ms [0.360, 0.480]", "params: ", "mult-adds: "):
        assert part in text


@pytest.mark.browser
@pytest.mark.parametrize("width", [1440, 390])
def test_report_in_a_browser(browser, study, tmp_path, width):
    path = write_report(study.url, study.name, tmp_path / "report.html")
    with page_of(browser, width) as (page, log):
        page.goto(path.as_uri())
        assert_front(page, "#plot-pareto_latency")
        assert page.title() == f"{STUDY} · mnet-search"
        assert page.locator("h1").inner_text() == STUDY
        assert page.locator("pre").inner_text().count("<img src=x") == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
        assert_hover(hover_text(page, "#plot-pareto_latency"), study)
        assert page.locator("section", has_text="The front").locator("tbody tr").count() >= 3
        assert log.errors == []
        assert [address for address in log.addresses if not address.startswith(("file:", "data:", "blob:"))] == []


def test_every_address_is_refused_under_any_name(study):
    app = create_app(study.url, token="a-token-of-twenty-six-chars")
    with pytest.raises(MnetError, match=r"host '0' is every address of this machine \(0.0.0.0\): name one IPv4"):
        bind(app, "0", 0)


def test_no_figure_can_be_sent_to_a_server():
    assert "sendChartToCloud" in GRAPH_CONFIG["modeBarButtonsToRemove"]


def test_an_origin_that_is_no_address_is_foreign(study):
    with served(study.url) as port:
        answer, _ = ask(port, "POST", "/action/note", "{}", Content_Type="application/json", Origin="http://[::1")
        assert answer.status == 403
