"""What the views of the live page choose and word, without a browser."""

from __future__ import annotations

from datetime import datetime, timedelta

import pandas as pd
import plotly.graph_objects as go
import pytest

from mnet_search.dashboards.live import LiveStudies
from mnet_search.dashboards.page_parts import block, card, graph, keep_zoom, take_apart
from mnet_search.dashboards.parallel_lines import lines_figure
from mnet_search.dashboards.parallel_plot import parallel_info
from mnet_search.dashboards.scene import brush_words, brushed
from mnet_search.dashboards.trial_page import commands
from mnet_search.dashboards.view_parallel import _about, _places
from mnet_search.dashboards.view_state import Brush, ViewState, from_query
from mnet_search.dashboards.view_study import best_text, state_of, time_left, volume_text
from mnet_search.dashboards.view_trials import columns_of, csv_of, rows_of
from mnet_search.dashboards.views import VIEWS, draw_page, look
from mnet_search.models.arch import MnetError
from mnet_search.studies.store import Summary

from browser import Written


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    written = Written(tmp_path_factory.mktemp("views"), "s")
    for place in range(10):
        written.finish(0.80 + 0.01 * place, 0.4 + 0.1 * (place % 7))
    written.writer.fail(written.begin()[0].trial_id, "loss is NaN at epoch 3")
    yield written
    written.store.close()


@pytest.fixture(scope="module")
def live(study):
    studies = LiveStudies(study.url)
    yield studies
    studies.close()


@pytest.fixture(scope="module")
def snapshot(live):
    return live.snapshot("s")[1]


def scene_of(live, query):
    from mnet_search.dashboards.scene import Scene

    state, problems = from_query(query)
    _, whole = live.snapshot("s")
    snapshot, unknown = brushed(whole, state.brush)
    return Scene(state, "sqlite:///a b.db", live, live.list(), whole, snapshot, (*problems, *unknown))


# --- The brush ---


def test_a_brush_keeps_numbers_in_a_range_and_values_by_name(snapshot):
    brush = {"accuracy": Brush(((0.845, 0.875), (0.885, 1.0))), "param.depth": Brush((), ("full", "shallow"))}
    kept, problems = brushed(snapshot, brush)
    assert (kept.frame["number"].tolist(), problems) == ([5, 6, 7, 9], ())
    assert set(kept.curves["number"]) <= {5, 6, 7, 9}
    assert brushed(snapshot, {})[0] is snapshot, "the cached one, not a copy"
    widths, _ = brushed(snapshot, {"width": Brush(((0.2, 0.6),), ("1",))})
    assert set(widths.frame["param.width"]) <= {0.25, 0.5, 1.0}
    assert len(widths.frame) < len(snapshot.frame)


def test_an_axis_that_is_not_there_is_said(snapshot):
    kept, problems = brushed(snapshot, {"wdth": Brush(((0.0, 1.0),))})
    assert kept is snapshot
    assert problems[0].startswith("filter wdth is left out: study 's' has no figure or parameter 'wdth'; did you mean")


def test_filters_in_words(snapshot):
    assert brush_words(snapshot, "accuracy", Brush(((0.5, 0.95),))) == "accuracy: 50.00 % to 95.00 %"
    assert brush_words(snapshot, "params", Brush(((-1e300, 1e6),))) == "params: at most 1 M"
    assert brush_words(snapshot, "width", Brush((), ("0.25", "1"))) == "width: 0.25 or 1"


def test_a_brush_becomes_places_on_parallel_axes(snapshot):
    info = parallel_info(snapshot)
    about = {axis.column: _about(snapshot, axis) for axis in info.axes}
    assert about["param.depth"]["words"] == ["full", "shallow"]
    assert about["accuracy"]["scale"] == 100.0 and not about["accuracy"]["log"]
    assert _places(about["accuracy"], {"accuracy": Brush(((0.85, 0.87),))}) == [(85.0, 87.0)]
    assert _places(about["param.depth"], {"depth": Brush((), ("shallow",))}) == [(0.75, 1.25)]
    assert _places(about["accuracy"], {}) == []
    place = [axis.column for axis in info.axes].index("accuracy")
    figure = lines_figure(info, {place: [(85.0, 87.0)]})
    shown = {trace.name: len(set(trace.customdata)) for trace in figure.data if trace.customdata is not None}
    assert shown["outside the filter"] == 7
    assert sum(count for name, count in shown.items() if name != "outside the filter") == 3


# --- The table ---


def test_the_table_sorts_by_any_column_and_searches_words(snapshot):
    frame = snapshot.frame
    assert rows_of(ViewState(options={"sort": "-accuracy"}), frame)["number"].tolist() == [*range(9, -1, -1), 10]
    assert rows_of(ViewState(options={"sort": "nonsense"}), frame)["number"].tolist() == list(range(11))
    assert rows_of(ViewState(options={"show": "failed"}), frame)["number"].tolist() == [10]
    assert rows_of(ViewState(options={"find": "NaN failed"}), frame)["number"].tolist() == [10]
    assert rows_of(ViewState(options={"find": "nowhere"}), frame).empty
    assert columns_of(ViewState(options={"columns": "seed,checkpoint,number"}), frame) == ["seed", "number"]
    assert "reason" not in columns_of(ViewState(), frame[frame["state"] == "finished"])


def test_csv_has_what_the_table_shows(snapshot):
    state = ViewState(options={"columns": "number,accuracy", "sort": "-number", "show": "finished"})
    assert csv_of(state, snapshot.frame).splitlines()[:2] == ["number,accuracy", "9,0.89"]


# --- A study in words ---


def summary_of(**changes):
    when = datetime(2026, 11, 22, 10, 0, 0)
    facts = {"name": "s", "space": "s", "objectives": {}, "n_finished": 2, "n_running": 1, "n_failed": 0}
    facts |= {"n_stopped": 0, "n_total_asked": 12, "created": when, "last_activity": when, "active": True}
    return Summary(**(facts | changes))


def test_time_left_is_that_of_the_latest_trials(snapshot):
    from dataclasses import replace

    begin = pd.Timestamp("2026-11-22 10:00:00")
    rows = {"state": ["finished", "finished", "stopped", "running"], "attempts": 1, "started": begin}
    frame = pd.DataFrame(rows | {"finished": [begin + timedelta(seconds=s) for s in (20, 30, 10)] + [pd.NaT]})
    frame["finished"] = pd.to_datetime(frame["finished"])
    study = replace(snapshot, frame=frame)
    assert time_left(study, summary_of()) == timedelta(seconds=300), "20 s each, 3 begun for 2 finished, 10 to go"
    assert time_left(study, summary_of(active=False)) is None
    assert [state_of(summary_of(active=a, n_finished=n)) for a, n in ((True, 2), (False, 2), (False, 12))] == [
        "running", "not running", "complete",
    ]  # fmt: skip


def test_best_and_hypervolume_of_a_study(snapshot):
    assert best_text(snapshot) == "89.00 %"
    assert 0 < float(volume_text(snapshot)) <= 1


def test_commands_that_reproduce_a_trial(live):
    assert commands(scene_of(live, "?study=s"), {"number": 3}) == (
        "mnet-search export s --trial 3 --format config -o . --storage 'sqlite:///a b.db'",
        "mnet-search train s-trial3.yaml",
    )


# --- Pages and their parts ---


def test_every_view_of_an_empty_study_says_what_to_do(tmp_path):
    written = Written(tmp_path, "empty")
    live = LiveStudies(written.url)
    for name in VIEWS:
        state, _ = look(ViewState(study="empty", view=name), live, None)
        page = draw_page(state, live, written.url, ())
        words = str(take_apart(page.view).blocks) + str(take_apart(page.view).figures)
        assert any(word in words for word in ("yet", "no parameters", "0 trials", "no trial")), name
    live.close()
    written.store.close()


def test_unknown_views_and_studies_are_named(live):
    with pytest.raises(MnetError, match=r"no view 'paretto'; did you mean pareto\?; there are: studies, overview"):
        look(ViewState(study="s", view="paretto"), live, None)
    with pytest.raises(MnetError, match="this address names no study: pick one from the list"):
        look(ViewState(view="pareto"), live, None)
    assert look(ViewState(), live, "s")[0] == ViewState(study="s", view="overview")
    assert look(ViewState(), live, None)[0].view == "studies"


def test_what_stays_of_a_view_is_told_from_what_follows_the_study():
    def view(words, title="t", x=1):
        return [card(title, block("words", words), graph("plot", go.Figure(go.Scatter(x=[x])), "a plot"))]

    first = take_apart(view("one"))
    assert (set(first.blocks), set(first.figures)) == ({"words"}, {"plot"})
    assert take_apart(view("two", x=2)).skeleton == first.skeleton
    assert take_apart(view("two")).digests != first.digests
    assert take_apart(view("one", title="u")).skeleton != first.skeleton


def test_a_zoom_is_kept_over_a_new_drawing():
    figure = go.Figure(layout={"yaxis": {"range": [0, 1]}})
    keep_zoom(figure, {"xaxis.range[0]": 2, "xaxis.range[1]": 3, "dragmode": "pan", "evil[0]": 1})
    assert (figure.layout.xaxis.range, figure.layout.yaxis.range) == ((2, 3), (0, 1))
    keep_zoom(figure, None)
    keep_zoom(figure, {"yaxis.range[0]": 5, "autosize": True})
    assert figure.layout.yaxis.range == (0, 1)


@pytest.mark.parametrize(
    ("page", "shown"),
    [("2", 2), ("99", 3), ("²", 1), ("9" * 5000, 1), ("-1", 1), ("0", 1)],
    ids=["2", "99", "square", "long", "-1", "0"],
)
def test_a_page_that_cannot_be_is_the_first_or_the_last(live, monkeypatch, page, shown):
    monkeypatch.setattr("mnet_search.dashboards.view_trials.ROWS", 4)  # of 11 trials
    drawn = str(VIEWS["trials"].draw(scene_of(live, f"?study=s&view=trials&page={page}")))
    assert f"page {shown} of 3" in drawn


def test_a_column_that_is_named_twice_is_shown_once(snapshot):
    state, _ = from_query("?study=s&view=trials&columns=number,state,number")
    assert columns_of(state, snapshot.frame) == ["number", "state"]
    assert csv_of(state, snapshot.frame).splitlines()[0] == "number,state"
