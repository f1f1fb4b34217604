"""`mnet-search plot`: kinds, options by name and type, every form of file, and what it refuses."""

from __future__ import annotations

import inspect
import json
import sys
from collections import namedtuple

import pytest

from mnet_search.dashboards.plots import PLOTS
from mnet_search.search import show_plot

from browser import HOW_TO_GET_ONE, Written, find_chromium
from processes import call

Study = namedtuple("Study", "folder url")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Four finished trials."""
    folder = tmp_path_factory.mktemp("study")
    written = Written(folder, "digits")
    for accuracy, latency_ms in ((0.90, 0.4), (0.95, 0.8), (0.97, 1.5), (0.85, 1.0)):
        written.finish(accuracy, latency_ms)
    yield Study(folder, written.url)
    written.store.close()


@pytest.fixture
def plot(study, tmp_path):
    def run(*arguments):
        return call(tmp_path, "plot", *arguments, "--storage", study.url)

    return run


def figure_of(path):
    return json.loads(path.read_text())


def test_without_a_kind_the_kinds_are_listed(plot):
    done = plot("digits")
    assert done.returncode == 0
    for kind, row in PLOTS.items():
        assert f"│ {kind} " in done.stdout and row.title in done.stdout
    listed = json.loads(plot("digits", "--json").stdout)
    assert [each["kind"] for each in listed] == list(PLOTS)
    assert listed[0]["options"]["log_x"] == {"type": "true or false", "default": True}
    assert listed[2]["options"]["x"] == {"type": "a name", "default": "params"}
    done = plot("digts")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no study 'digts'" in done.stderr


@pytest.mark.parametrize("kind", PLOTS)
def test_every_option_of_every_kind_can_be_said(kind):
    """An info function with an option of a new type needs a row in TYPES; a moment in time is the tests' own."""
    said = set(show_plot.options_of(PLOTS[kind]))
    own = {
        name
        for name, each in inspect.signature(PLOTS[kind].info).parameters.items()
        if each.kind is each.KEYWORD_ONLY and "datetime" not in str(each.annotation)
    }
    assert said == own


def test_options_become_what_the_info_function_takes():
    texts = (
        "x=params",
        "z = mult_adds",
        "log_y=yes",
        "log_x=False",
        "show=front, dominated",
        "budgets=params=100k,accuracy=0.9",
    )
    assert show_plot.parse_options("pareto", PLOTS["pareto"], texts) == {
        "x": "params",
        "z": "mult_adds",
        "log_y": True,
        "log_x": False,
        "show": ("front", "dominated"),
        "budgets": {"params": 100_000.0, "accuracy": 0.9},
    }
    assert show_plot.parse_options("curves", PLOTS["curves"], ("numbers=0,3",)) == {"numbers": (0, 3)}


def test_a_figure_as_json_with_options(plot, tmp_path):
    done = plot("digits", "pareto", "-s", "x=params", "--set", "log_y=true", "-o", "p.json", "--width", 640)
    assert (done.returncode, done.stdout, done.stderr) == (0, "p.json\n", "")
    layout = figure_of(tmp_path / "p.json")["layout"]
    assert layout["xaxis"]["title"]["text"] == "Parameters"
    assert (layout["yaxis"]["type"], layout["width"], layout["height"]) == ("log", 640, 500)
    assert (layout["paper_bgcolor"], layout["plot_bgcolor"], layout["font"]["color"]) == ("white", "white", "#1c2126")
    done = plot("digits", "errors", "-o", "e.JSON", "--json")
    assert json.loads(done.stdout) == {
        "study": "digits",
        "kind": "errors",
        "file": "e.JSON",
        "bytes": (tmp_path / "e.JSON").stat().st_size,
    }


def test_a_figure_as_a_page_that_needs_nothing_else(plot, tmp_path):
    assert plot("digits", "slice").stdout == "slice.html\n"
    page = (tmp_path / "slice.html").read_text()
    assert page.count("* plotly.js v") == 1
    own = page[: page.index("<script>/**")] + page[page.index("</head>") :]
    assert "http" not in own.replace("http-equiv", "") and "default-src 'none'" in own
    assert "<title>One parameter: digits</title>" in own and '"width":900,"height":500' in own.replace(" ", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["paretto"], "there is no figure 'paretto'; did you mean pareto? (known: pareto, pareto_latency, "),
        (["pareto", "-s", "log_z=1"], "--set log_z=1: 'pareto' has no option 'log_z'; did you mean log_"),
        (["drift", "-s", "most=1"], "--set most=1: 'drift' has no option 'most' (it has none)"),
        (["pareto", "-s", "log_y=maybe"], "--set log_y=maybe: log_y is true or false, not 'maybe'"),
        (["slice", "-s", "most=0"], "--set most=0: most is a number from 1, not '0'"),
        (["curves", "-s", "numbers=a"], "--set numbers=a: numbers is trial numbers with commas between, not 'a'"),
        (["pareto", "-s", "budgets=params"], "--set budgets=params: budgets is limits such as params=100k,"),
        (["pareto", "-s", "x="], "--set x=: x is a name, not ''"),
        (["pareto", "-s", "x"], "--set x: write OPTION=VALUE, such as --set x=params"),
        (["pareto", "-s", "x=parms"], "study 'digits' has no figure or parameter 'parms'; did you mean params?"),
        (["pareto", "-o", "p.gif"], "-o p.gif: its ending says the form, and is .gif; write .html or .json or .svg or"),
        (["pareto", "-o", "no/p.svg"], "no/p.svg: there is no folder 'no'; make it, or name another with -o"),
        (["importance"], "nothing to draw for 'importance' of study 'digits': importance compares the "),
    ],
)  # fmt: skip
def test_what_is_refused_and_leaves_no_file(plot, tmp_path, arguments, text):
    done = plot("digits", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mnet-search: {text}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_with_force(plot, tmp_path):
    (tmp_path / "e.json").write_text("mine")
    done = plot("digits", "errors", "-o", "e.json")
    assert done.returncode == 2 and "e.json: exists already; replace it with --force" in done.stderr
    assert (tmp_path / "e.json").read_text() == "mine"
    assert plot("digits", "errors", "-o", "e.json", "--force").returncode == 0
    assert figure_of(tmp_path / "e.json")["data"]


def test_pictures_without_kaleido_name_the_extra(plot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    done = plot("digits", "errors", "-o", "e.svg")
    assert done.returncode == 2
    assert done.stderr == (
        "mnet-search: .svg needs the package kaleido: pip install 'mnet-search[figures]' (or write .html or .json, "
        "which need neither)\n"
    )
    assert list(tmp_path.iterdir()) == []


# --- With a browser ---


@pytest.fixture
def with_browser(monkeypatch):
    pytest.importorskip("kaleido", reason="the extra `figures` is not installed")
    executable = find_chromium()
    if executable is None:
        pytest.skip(HOW_TO_GET_ONE)
    monkeypatch.setenv("BROWSER_PATH", executable)


@pytest.mark.browser
@pytest.mark.parametrize("ending", [".svg", ".png", pytest.param(".pdf", marks=pytest.mark.slow)])
def test_pictures(plot, tmp_path, with_browser, ending):
    done = plot("digits", "errors", "-o", f"e{ending}", "--width", 700, "--height", 400)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"e{ending}\n", "")
    content = (tmp_path / f"e{ending}").read_bytes()
    if ending == ".png":
        assert content.startswith(b"\x89PNG")
        assert [int.from_bytes(content[start : start + 4], "big") for start in (16, 20)] == [700, 400]
    elif ending == ".pdf":
        assert content.startswith(b"%PDF")
    else:
        assert b'width="700" height="400"' in content and b"Validation error (%)" in content
        assert b"background: white" in content or b"fill: rgb(255, 255, 255)" in content


@pytest.mark.browser
def test_pictures_without_a_browser_say_what_is_missing(plot, tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="the extra `figures` is not installed")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    done = plot("digits", "errors", "-o", "e.png")
    assert done.returncode == 2
    assert done.stderr == (
        "mnet-search: .png is drawn by a Chromium or Chrome, and none was found: install one, or name it in "
        "BROWSER_PATH, or write .html or .json, which need none\n"
    )
    assert list(tmp_path.iterdir()) == []
