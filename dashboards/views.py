"""The views of the live page, and what stands around each of them: navigation, progress, and the bar of filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dash import html as tags

from mnet_search.dashboards.guard import DashboardError
from mnet_search.dashboards.live import LiveStudies
from mnet_search.dashboards.page_parts import attributes, block, empty, link, select
from mnet_search.dashboards.scene import Scene, brush_words, brushed
from mnet_search.dashboards.trial_page import draw_trial
from mnet_search.dashboards.view_compare import draw_compare
from mnet_search.dashboards.view_parallel import draw_parallel
from mnet_search.dashboards.view_plots import (
    draw_curves,
    draw_history,
    draw_importance,
    draw_latency,
    draw_pareto,
    draw_scaling,
    draw_timeline,
    tried,
)
from mnet_search.dashboards.view_state import THEMES, ViewState
from mnet_search.dashboards.view_study import draw_overview, draw_studies, progress
from mnet_search.dashboards.view_trials import draw_trials
from mnet_search.models.arch import MnetError
from mnet_search.models.tables import nearest
from mnet_search.studies.store import Summary

STUDIES = "studies"  # the one view that is of no study
FIRST = "overview"


@dataclass(frozen=True)
class View:
    """A row of VIEWS: what its link says, and what it draws of a study."""

    title: str
    draw: Callable[[Scene], list[Any]]


@dataclass(frozen=True)
class Page:
    """All that changes on the page: blocks around the view by name, and the view itself."""

    around: dict[str, list[Any]]
    view: list[Any]


def look(state: ViewState, live: LiveStudies, given: str | None) -> tuple[ViewState, str]:
    """The state with its study and view filled in, and a mark that changes whenever what it shows has changed.

    `given` is the study that the server was started with. Raises MnetError: no such study or view, no database.
    """
    study = state.study or given or ""
    if state.view == STUDIES or (not study and not state.view):
        return replace(state, view=STUDIES, study=state.study), str(live.list())
    if not study:
        raise DashboardError("this address names no study: pick one from the list")
    if state.view and state.view not in VIEWS:
        known = [STUDIES, *VIEWS]
        raise DashboardError(f"no view {state.view!r}{nearest(state.view, known)}; there are: {', '.join(known)}")
    mark, _ = live.snapshot(study)
    about = [summary for summary in live.list() if summary.name == study]  # may be a second older than the snapshot
    return replace(state, study=study, view=state.view or FIRST), f"{mark} {about}"


def draw_page(state: ViewState, live: LiveStudies, storage_url: str, problems: tuple[str, ...]) -> Page:
    """What `look` has found, drawn. Raises MnetError."""
    studies = live.list()
    if state.view == STUDIES:
        around = _around(state, studies, None, problems)
        return Page(around, draw_studies(state, live, studies))
    _, whole = live.snapshot(state.study)
    snapshot, unknown = brushed(whole, state.brush)
    scene = Scene(state, storage_url, live, studies, whole, snapshot, (*problems, *unknown))
    view = VIEWS[state.view]
    around = _around(state, studies, scene, scene.problems)
    return Page(around, tried(view.draw, scene))


def draw_failure(state: ViewState, error: MnetError, studies: tuple[Summary, ...]) -> Page:
    """The page where the database, the study or the view is not there."""
    names = tuple(summary.name for summary in studies)
    ways = [link("Studies", ViewState(view=STUDIES, theme=state.theme))]
    ways += [tags.Span([" · ", link(name, ViewState(study=name, theme=state.theme))]) for name in names[:20]]
    around = _around(replace(state, study=state.study if state.study in names else ""), studies, None, ())
    return Page(around, [block("why", empty(str(error))), block("ways", tags.P(ways if names else ""))])


# ---------------------------------------------------------------- around the view


def _around(
    state: ViewState, studies: tuple[Summary, ...], scene: Scene | None, problems: tuple[str, ...]
) -> dict[str, list[Any]]:
    line = progress(scene.summary, len(scene.whole.front())) if scene else f"{len(studies)} studies in this database"
    return {
        "heading": [tags.H1(scene.whole.name if scene else "mnet-search")],
        "pickers": _pickers(state, studies, scene),
        "navigation": _navigation(state, scene),
        "progress": [line],
        "bar": _bar(scene) if scene else [],
        "problems": [tags.P(problem, className="hint") for problem in problems],
    }


def _pickers(state: ViewState, studies: tuple[Summary, ...], scene: Scene | None) -> list[Any]:
    themes = [("", "as the system"), *((name, name) for name in THEMES)]
    names = [(summary.name, summary.name) for summary in studies]
    pickers = [select("study", "Study", names, scene.whole.name if scene else "")] if names else []
    return [*pickers, select("theme", "Theme", themes, state.theme)]


def _navigation(state: ViewState, scene: Scene | None) -> list[Any]:
    entries = [(STUDIES, "Studies", ViewState(view=STUDIES, theme=state.theme))]
    if scene is not None:
        entries += [(name, view.title, state.to(name)) for name, view in VIEWS.items()]
    items = []
    for name, title, there in entries:
        here = {"aria-current": "page"} if name == state.view else {}
        items.append(tags.Li(link(title, there, **here)))
    now = next((title for name, title, _ in entries if name == state.view), "")
    folded = tags.Details(
        [tags.Summary(f"View: {now}"), tags.Nav(tags.Ul(items), **attributes(aria_label="views"))], className="menu"
    )
    return [tags.Nav(tags.Ul(items), className="across", **attributes(aria_label="views")), folded]


def _bar(scene: Scene) -> list[Any]:
    """What is filtered, with a way to clear each filter, and all."""
    state = scene.state
    if not state.brush:
        return []
    left, total = len(scene.snapshot.frame), len(scene.whole.frame)
    parts: list[Any] = [tags.Strong(f"Filtered: {left:,} of {total:,} trials. ")]
    for name, brush in state.brush.items():
        rest = replace(state, brush={other: one for other, one in state.brush.items() if other != name})
        words = brush_words(scene.whole, name, brush)
        parts += [
            tags.Span(words),
            " ",
            link("clear", rest, **attributes(aria_label=f"clear the filter {words}")),
            " · ",
        ]
    return [*parts, link("clear all filters", replace(state, brush={}))]


# To add a view, write its function in a file beside this one and its row here: the order is that of the navigation.
VIEWS = {
    FIRST: View("Overview", draw_overview),
    "pareto": View("Front", draw_pareto),
    "history": View("History", draw_history),
    "curves": View("Curves", draw_curves),
    "parallel": View("Parallel", draw_parallel),
    "importance": View("Importance", draw_importance),
    "scaling": View("Scaling", draw_scaling),
    "latency": View("Latency", draw_latency),
    "timeline": View("Timeline", draw_timeline),
    "trials": View("Trials", draw_trials),
    "trial": View("Trial", draw_trial),
    "compare": View("Compare", draw_compare),
}
