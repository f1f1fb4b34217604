"""The live page as visitors use it, in a real headless Chromium: views, links, brush, budgets, actions, attacks.

Starting a page costs seconds, so each test looks at many things in one.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from mnet_search.dashboards.views import VIEWS
from mnet_search.studies.requests import Note, notes, write_note

from browser import STUDY, Written, ask, chromium, hover_text, page_of, served, wait_for_points

SCRIPT = "<script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"
FIRST = '[id*="first"] .js-plotly-plot'
PARETO = '[id*="pareto"] .js-plotly-plot'

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Ten finished trials, one that failed over markup, one that was stopped, one that runs; a note of markup."""
    written = Written(tmp_path_factory.mktemp("study"))
    for place in range(10):
        written.finish(0.80 + 0.01 * place, 0.4 + 0.1 * (place % 7))
    written.writer.fail(written.begin()[0].trial_id, SCRIPT)
    written.writer.stop(written.begin()[0].trial_id, "rung 1: among the worse half")
    written.begin()
    write_note(written.store, written.name, 0, Note(SCRIPT, (SCRIPT[:40], "kept")))
    yield written
    written.store.close()


@pytest.fixture(scope="module")
def port(study):
    with served(study.url, study.name) as port:
        yield port


@pytest.fixture
def own(tmp_path):
    """A study of three trials that a test may change."""
    written = Written(tmp_path, "own")
    for accuracy, latency_ms in ((0.90, 0.4), (0.95, 0.8), (0.97, 1.5)):
        written.finish(accuracy, latency_ms)
    yield written
    written.store.close()


def query(page):
    return dict(parse_qsl(urlsplit(page.url).query))


def heading(page, text):
    page.locator("#page h2", has_text=text).wait_for()


def drawn(page):
    """Wait until every figure of the view is drawn."""
    page.wait_for_function(
        "() => { const all = [...document.querySelectorAll('#page .dash-graph')];"
        " return all.every((one) => one.querySelector('.main-svg')); }"
    )


def until(page, expression):
    """As a function: the page lets nobody make code from text, a test neither."""
    page.wait_for_function(f"() => {expression}")


def sideways(page):
    return page.evaluate("document.documentElement.scrollWidth") > page.viewport_size["width"]


TITLES = {
    "overview": "Overview", "pareto": "The front", "history": "History", "curves": "Learning curves",
    "parallel": "Parallel coordinates", "importance": "Importance", "scaling": "Scaling", "latency": "Latency",
    "timeline": "Timeline", "trials": "Trials", "trial": "Trial 12", "compare": "Compare",
}  # fmt: skip


def test_every_view_has_a_title_here():
    assert set(TITLES) == set(VIEWS)


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (390, "dark")])
def test_every_view_renders(browser, port, width, theme):
    with page_of(browser, width) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/?theme={theme}")
        for name, view in VIEWS.items():
            if width == 390:
                page.locator("details.menu summary").click()
                page.locator("details.menu").get_by_role("link", name=view.title, exact=True).click()
            else:
                page.locator("nav.across").get_by_role("link", name=view.title, exact=True).click()
            heading(page, TITLES[name])
            drawn(page)
            assert query(page)["view"] == name and query(page)["theme"] == theme
            assert not sideways(page), f"{name} scrolls sideways at {width}"
            assert not page.locator("#said").inner_text()
            unnamed = page.evaluate(
                "[...document.querySelectorAll('#app select, #app input, #app textarea')].filter((field) =>"
                " !(field.labels && field.labels.length) && !field.getAttribute('aria-label')).map((one) => one.id)"
            )
            assert unnamed == [], "a control without a label"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == ("rgb(20, 23, 26)" if theme == "dark" else "rgb(244, 246, 248)")
        assert page.evaluate("window.attacked") is None
        assert log.errors == []
        assert all(address.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) for address in log.addresses)


def test_the_front_its_axes_budgets_and_a_click(browser, port):
    with page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/?view=pareto&foo=1&x=latency_ms")
        heading(page, "The front")
        page.get_by_text("foo=1 means nothing here: left out").wait_for()
        drawn(page)
        page.locator("#set-x").focus()
        page.locator("#set-x").select_option("params")
        until(page, f"document.querySelector('{PARETO}').layout.xaxis.title.text.startsWith('Param')")
        assert query(page)["x"] == "params"
        assert page.evaluate("document.activeElement.id") == "set-x", "the keyboard stays where it was"
        page.locator("#set-color").select_option("depth")
        until(page, f"document.querySelector('{PARETO}').data.some((one) => (one.name || '').includes('shallow'))")
        page.get_by_role("link", name="log x").focus()
        page.keyboard.press("Enter")
        until(page, f"document.querySelector('{PARETO}').layout.xaxis.type !== 'log'")
        assert page.evaluate("document.activeElement.textContent") == "log x"
        assert page.title() == f"{STUDY} · The front · mnet-search"
        slider = page.locator("[id='set-max.params']")
        slider.focus()
        for _ in range(3):
            page.keyboard.press("PageDown")
        page.wait_for_url("**max.params=*")
        page.locator("[id*='best'] p").first.wait_for()
        assert "trial" in page.locator("[id*='best']").inner_text()
        shared = page.url
        while "log=" in page.url:  # each step of the slider is one
            page.go_back()
        until(page, f"document.querySelector('{PARETO}').layout.xaxis.type === 'log'")
        page.goto(shared)
        heading(page, "The front")
        assert page.locator("#set-color").input_value() == "depth"
        drawn(page)
        page.goto(f"http://127.0.0.1:{port}/?view=pareto&x=latency_ms")
        heading(page, "The front")
        drawn(page)
        hover_text(page, PARETO)
        page.mouse.down()
        page.mouse.up()
        page.locator("#page h2", has_text="Trial ").wait_for()
        assert (query(page)["view"], query(page)["trials"].isdigit()) == ("trial", True)
        assert log.errors == []


def test_a_brush_filters_every_view_until_it_is_cleared(browser, port):
    with page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/?view=parallel")
        heading(page, "Parallel coordinates")
        drawn(page)
        plot = page.locator(".js-plotly-plot .nsewdrag").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        n_axes = page.evaluate("document.querySelector('.js-plotly-plot').data[0].meta.length")
        first = box["x"] + box["width"] * 0.15 / (n_axes - 0.25)  # where the first axis, accuracy, stands
        page.mouse.move(first - 8, box["y"] + 4)
        page.mouse.down()
        page.mouse.move(first + 8, box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        bar = page.locator("[id*='bar']")
        bar.get_by_text("accuracy: ").wait_for()
        low, high = map(float, query(page)["brush.accuracy"].split(".."))
        assert 0.83 < low < 0.86 and high > 0.885
        page.locator("nav.across a", has_text="Trials").click()
        heading(page, "Trials")
        shown = page.locator("#page tbody tr").count()
        assert 3 <= shown < 10
        assert f"Filtered: {shown} of 13 trials" in bar.inner_text()
        page.locator("nav.across a", has_text="Parallel").click()
        heading(page, "Parallel coordinates")
        page.get_by_role("link", name="shallow", exact=True).click()
        bar.get_by_text("depth: shallow").wait_for()
        page.get_by_label("clear the filter accuracy").click()
        until(page, "!location.search.includes('brush.accuracy')")
        bar.get_by_text("clear all filters").click()
        until(page, "!document.querySelector('[id*=bar]').innerText")
        field = page.locator("[id='set-high.params']")
        field.fill("1M")
        page.keyboard.press("Enter")
        bar.get_by_text("params: at most").wait_for()
        assert log.errors == []


def test_the_table_sorts_searches_and_is_csv(browser, port):
    with page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/?view=trials")
        heading(page, "Trials")

        def column(place):
            return page.locator(f"#page tbody tr td:nth-child({place})").all_inner_texts()

        page.locator("#page th a", has_text="accuracy").click()
        until(page, "document.querySelector('#page tbody td a').innerText === '9'")
        assert column(1)[:3] == ["9", "8", "7"]
        page.locator("#page .group a", has_text="failed (1)").click()
        until(page, "document.querySelectorAll('#page tbody tr').length === 1")
        assert SCRIPT in page.locator("#page tbody").inner_text(), "what a trial failed over is text"
        page.locator("#page .group a", has_text="failed (1)").click()
        page.locator("#set-find").fill("shallow")
        page.keyboard.press("Enter")
        page.wait_for_url("**find=shallow*")
        until(page, "document.querySelectorAll('#page tbody tr').length < 13")
        with page.expect_download() as caught:
            page.get_by_text("Download CSV").click()
        lines = Path(caught.value.path()).read_text().splitlines()
        assert lines[0].startswith("number,state,param.width") and len(lines) == 1 + len(column(1))
        assert log.errors == []


def test_the_trial_page_and_its_actions(browser, own, tmp_path):
    (tmp_path / "runs").mkdir()
    with served(own.url, "own") as port, page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/?view=trial&trials=1")
        heading(page, "Trial 1")
        words = page.locator("#page").inner_text()
        for part in (
            "95.00 %",
            "0.800 ms [0.720, 0.960]",
            "stem.conv",
            "mnet-search train own-trial1.yaml",
            "depthwise 3x3",
        ):
            assert part in words
        page.locator("#write-note").fill(SCRIPT)
        page.locator("#write-tags").fill("odd, " + SCRIPT[:30])
        page.locator("#act-note").click()
        page.locator("#said", has_text="the note of trial 1 is kept").wait_for()
        page.locator(".badge", has_text="odd").wait_for()
        assert notes(own.store, "own")[1].text == SCRIPT
        page.reload()
        heading(page, "Trial 1")
        assert page.locator("#write-note").input_value() == SCRIPT
        assert page.locator(".badge").all_inner_texts() == ["odd", SCRIPT[:30]]
        page.locator("#act-repeat").focus()
        page.keyboard.press("Enter")
        page.locator("#said", has_text="trial 3 waits: the same network with seed 1").wait_for()
        page.locator("#page a", has_text="trial 3").first.wait_for()
        assert page.evaluate("window.attacked") is None
        assert log.errors == []
        page.locator("#act-export").click()  # its provenance is not that of a real study
        page.locator("#said.bad").wait_for()


def test_the_page_follows_a_search_without_reload(browser, own):
    with served(own.url, "own") as port, page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/")
        wait_for_points(page, FIRST, 3)
        assert page.locator("h1").inner_text() == "own"
        hover = hover_text(page, FIRST)
        assert "trial 0" in hover and "accuracy: 90.00 %" in hover
        box = page.locator(f"{FIRST} .nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] - 20, steps=4)
        page.mouse.up()
        zoomed = page.evaluate(f"document.querySelector('{FIRST}').layout.yaxis.range")
        page.evaluate("window.notReloaded = true")
        own.finish(0.99, 2.0)
        wait_for_points(page, FIRST, 4)
        assert page.evaluate("window.notReloaded"), "the new trial came without a reload"
        assert page.evaluate(f"document.querySelector('{FIRST}').layout.yaxis.range") == zoomed, "the zoom is kept"
        assert page.locator("[id*='progress']").inner_text().startswith("4 of 30 trials finished · ")
        assert "Most accurate: trial 3 " in page.locator("#page").inner_text()

        def poll():
            with page.expect_response(lambda answer: "update-component" in answer.url) as caught:
                pass
            return caught.value.status

        # The list of studies may be a second older, so that one more answer tells of the last trial.
        quiet = 0
        for _ in range(12):
            quiet = quiet + 1 if poll() == 204 else 0
            if quiet == 3:
                break
        assert quiet == 3, "nothing is sent where nothing has changed"
        assert log.errors == []


def test_the_list_of_studies_and_what_is_wrong(browser, tmp_path):
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    with served(url, "later") as port, page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_text("no such database; start a search first (mnet-search run SPACE)").wait_for()
        sooner = Written(tmp_path, STUDY)
        sooner.finish(0.8, 1.0)
        page.get_by_text("no study 'later' in").wait_for()
        later = Written(tmp_path, "later")
        page.get_by_text("no finished trials yet, and no search is running: start it with").wait_for()
        later.finish(0.9, 1.0)
        wait_for_points(page, FIRST, 1)
        page.locator("nav.across a", has_text="Studies").click()
        heading(page, "Studies")
        assert page.locator("#page tbody a").all_inner_texts() == ["later", STUDY]
        page.locator("#page tbody a", has_text="digits").focus()
        page.keyboard.press("Enter")
        heading(page, "Overview")
        assert page.locator("h1").inner_text() == STUDY
        page.goto(f"http://127.0.0.1:{port}/?view=pareo&study=later")
        page.get_by_text("no view 'pareo'; did you mean pareto?").wait_for()
        page.goto(f"http://127.0.0.1:{port}/?study=later&view=compare&with=digits")
        page.get_by_text("no study 'digits' in").wait_for()
        page.goto(f"http://127.0.0.1:{port}/?study=later&view=trial&trials=77")
        page.get_by_text("no trial 77 in this study (it has: 0 to 0)").wait_for()
        assert log.errors == []
        sooner.store.close()
        later.store.close()


def test_a_token_opens_the_page_and_leaves_the_address(browser, own):
    token = "a-token-of-twenty-six-chars"
    with served(own.url, "own", token) as port, page_of(browser) as (page, log):
        page.goto(f"http://127.0.0.1:{port}/")
        assert "this dashboard needs its token" in page.locator("body").inner_text()
        page.goto(f"http://127.0.0.1:{port}/?token={token}&view=trials")
        heading(page, "Trials")
        assert token not in page.url and query(page) == {"view": "trials"}
        assert page.evaluate("document.cookie") == ""
        layout = json.loads(page.evaluate("fetch('/_dash-layout').then((answer) => answer.text())"))
        assert len(layout["props"]["data-session"]) >= 24
        assert ask(port, path="/_dash-layout")[0].status == 401
        assert [error for error in log.errors if "401" not in error] == []
