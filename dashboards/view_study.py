"""The list of studies, and one study at a glance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from dash import html as tags

from mnet_search.dashboards.live import LiveStudies
from mnet_search.dashboards.page_parts import action, attributes, block, card, empty, link, pairs, table
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.report import flatten
from mnet_search.dashboards.scene import Scene
from mnet_search.dashboards.snapshot import Overview, Snapshot, Table, findings, front_table, overview, percent
from mnet_search.dashboards.view_state import ViewState
from mnet_search.studies.pareto import hypervolume, networks, reference_point
from mnet_search.studies.status import LAST_TRIALS
from mnet_search.studies.store import Summary

MOST_LISTED = 5000  # trials up to which the list of studies reads a study whole, for its best and its hypervolume
MOST_MEMBERS = 50  # networks of the front in the table
MOST_FAILURES = 12  # reasons of failures that are listed
ABOUT = ("command", "hostname", "device", "git_commit", "torch", "versions", "cpus", "validation_images")


# ---------------------------------------------------------------- words


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


def state_of(summary: Summary) -> str:
    """A study's state in a word or two."""
    if summary.active:
        return "running"
    return "complete" if summary.n_finished >= summary.n_total_asked else "not running"


def time_left(snapshot: Snapshot, summary: Summary) -> timedelta | None:
    """As `mnet-search status` tells it: from the times of the latest trials; None where no search is running, or no
    trial has finished yet.
    """
    frame = snapshot.frame
    ended = frame[frame["state"].isin(["finished", "stopped"]) & (frame["attempts"] == 1)].tail(LAST_TRIALS)
    n_finished = int((ended["state"] == "finished").sum())
    if not summary.active or not n_finished:
        return None
    each = statistics.median((ended["finished"] - ended["started"]).dt.total_seconds()) * len(ended) / n_finished
    left = max(summary.n_total_asked - summary.n_finished, 0)
    return timedelta(seconds=round(each * left / max(summary.n_running, 1)))


# ---------------------------------------------------------------- the list


def draw_studies(state: ViewState, live: LiveStudies, studies: tuple[Summary, ...]) -> list[Any]:
    """Every study of the database, the one with the latest activity first."""
    if not studies:
        return [tags.H2("Studies"), block("studies", empty("no study yet: start one with mnet-search run SPACE"))]
    columns = ("study", "state", "progress", "finished", "failed", "best", "hypervolume", "last activity", "space")
    ordered = sorted(studies, key=lambda summary: summary.last_activity, reverse=True)
    rows = [_row(state, summary, live) for summary in ordered]
    listed = table(columns, rows, label="Studies", numeric=(3, 4, 5, 6))
    note = tags.P(
        "Hypervolume: of the study's own front in its objectives, as a share of the box between its best and its worst "
        "figures; it tells how a study grows, and does not compare studies (the compare view does).",
        className="hint",
    )
    return [tags.H2("Studies"), block("studies", tags.Section([listed, note], className="card"))]


def _row(state: ViewState, summary: Summary, live: LiveStudies) -> list[Any]:
    best, volume = "", ""
    n_trials = summary.n_finished + summary.n_failed + summary.n_stopped + summary.n_running
    if summary.n_finished and n_trials <= MOST_LISTED:
        snapshot = live.snapshot(summary.name)[1]
        best, volume = best_text(snapshot), volume_text(snapshot)
    here = ViewState(study=summary.name, view="overview", theme=state.theme)
    share = tags.Progress(
        value=str(summary.n_finished),
        max=str(max(summary.n_total_asked, 1)),
        **attributes(aria_label="trials finished"),
    )
    return [
        link(summary.name, here),
        state_of(summary),
        share,
        f"{summary.n_finished:,} of {summary.n_total_asked:,}",
        f"{summary.n_failed:,}" if summary.n_failed else "",
        best,
        volume,
        f"{summary.last_activity:%Y-%m-%d %H:%M}",
        summary.space,
    ]


def best_text(snapshot: Snapshot) -> str:
    """The best value of the first objective."""
    name, direction = next(iter(snapshot.objectives.items()))
    values = snapshot.finished()[name].dropna()
    if values.empty:
        return ""
    value = float(values.max() if direction == "maximize" else values.min())
    return percent(value) if name == "accuracy" else f"{value:.4g}"


def volume_text(snapshot: Snapshot) -> str:
    """The hypervolume of the front, as a share of the box between the study's best and worst figures."""
    names, directions = list(snapshot.objectives), list(snapshot.objectives.values())
    values = networks(snapshot.frame, snapshot.objectives)[names].dropna().to_numpy(dtype=float)
    if len(values) < 2 or len(names) > 4:
        return ""
    best = [values[:, place].max() if d == "maximize" else values[:, place].min() for place, d in enumerate(directions)]
    reference = reference_point(values, directions)
    box = math.prod(abs(float(b) - float(r)) for b, r in zip(best, reference, strict=True))
    return f"{hypervolume(values, directions, reference) / box:.3f}" if box > 0 else ""


# ---------------------------------------------------------------- one study


def draw_overview(scene: Scene) -> list[Any]:
    """Progress, what was found, the first front, failures with their reasons, machine and data."""
    snapshot, summary = scene.snapshot, scene.summary
    message = empty_message(summary)
    whole = overview(snapshot)
    found = [tags.P(line) for line in findings(whole)]
    cards: list[Any] = [
        block("found", *([empty(message)] if message else []), *found, className="wide"),
        tags.Section([tags.H3("Accuracy and cost"), _first_front(scene)], className="card double"),
        tags.Div(
            [
                card("Trials by state", block("counts", *_counts(scene, whole))),
                card("Failures", block("failures", *_failures(scene))),
            ]
        ),
        card("The front", block("front", _members(scene, front_table(snapshot))), wide=True),
        card("Machine and data", block("about", *_about(snapshot)), wide=True),
    ]
    return [tags.H2("Overview"), tags.Div(cards, className="cards")]


def _first_cost(snapshot: Snapshot) -> str:
    costs = [name for name, direction in snapshot.objectives.items() if name != "accuracy" and direction == "minimize"]
    return costs[0] if costs else "params"


def _first_front(scene: Scene) -> Any:
    preset = f"pareto_{_first_cost(scene.snapshot).removesuffix('_ms')}"
    name = preset if preset in PLOTS else "pareto_params"
    return scene.plot(name, f"{PLOTS[name].title}: the front and the other trials", part="first")


def _counts(scene: Scene, found: Overview) -> Iterator[Any]:
    rows = [
        (
            link(name, scene.state.to("trials").having(show=name)),
            f"{count:,}",
        )
        for name, count in found.states
    ]
    yield table(("state", "trials"), rows, label="Trials by state", numeric=(1,))
    left = time_left(scene.whole, scene.summary)
    if left is not None:
        yield tags.P(f"about {left} left, at the pace of the latest trials")
    if scene.summary.active:
        yield tags.P(action("stop", "Stop the search", scene.whole.name))
        yield tags.P(
            "It ends after the running trials' next checkpoints; mnet-search resume goes on.", className="hint"
        )


def _failures(scene: Scene) -> Iterator[Any]:
    failed = scene.snapshot.frame[scene.snapshot.frame["state"] == "failed"]
    if failed.empty:
        yield tags.P("none", className="soft")
        return
    groups = failed.groupby("reason")["number"]
    rows = sorted(((reason, numbers.tolist()) for reason, numbers in groups), key=lambda row: -len(row[1]))
    cells = [
        (
            str(len(numbers)),
            reason or "no reason was recorded",
            link(str(numbers[-1]), scene.state.to("trial", numbers[-1])),
        )
        for reason, numbers in rows[:MOST_FAILURES]
    ]
    yield table(("trials", "reason", "the latest"), cells, label="Failures", numeric=(0,), words=(1,))
    if len(rows) > MOST_FAILURES:
        yield tags.P(f"and {len(rows) - MOST_FAILURES} other reasons: see the table of trials", className="hint")


def _about(snapshot: Snapshot) -> Iterator[Any]:
    rows = list(flatten(snapshot.provenance))
    if not rows:
        yield tags.P("nothing recorded", className="soft")
    first = [row for row in rows if row[0].startswith(ABOUT)]
    rest = [row for row in rows if row not in first]
    yield pairs(first or rows)
    if first and rest:
        yield tags.Details([tags.Summary("all that is recorded"), pairs(rest)])
    yield tags.Details([tags.Summary("the space file as run"), tags.Pre(snapshot.space_text, tabIndex=0)])


def _members(scene: Scene, found: Table) -> Any:
    if not found.rows:
        return tags.P("no finished trials yet", className="soft")
    to = scene.state
    shown = [(link(row[0], to.to("trial", int(row[0]))), *row[1:]) for row in found.rows[:MOST_MEMBERS]]
    more = [tags.P(f"the first {len(shown)} of {len(found.rows)}: the view of trials has all", className="hint")]
    return tags.Div([table(found.columns, shown, label="The front", tall=True), *more * (len(shown) < len(found.rows))])
