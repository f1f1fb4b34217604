"""Views that are a plot or two with their controls: the front, history, curves, scaling, latency, timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from dash import html as tags

from mnet_search.dashboards.network_options import with_options
from mnet_search.dashboards.page_parts import attributes, block, card, empty, group, select, slider, text_input, toggle
from mnet_search.dashboards.quantities import PARAMETER, figures, parameter_names, quantity
from mnet_search.dashboards.scene import Scene, draw
from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.dashboards.view_state import ViewState
from mnet_search.models.arch import MnetError

TALL = 560  # pixels of a figure that has the view to itself
SWITCHES = {  # of the Pareto view, as plots know them
    "front": "front",
    "dominated": "dominated",
    "stopped": "stopped early",
    "over_budget": "over budget",
    "reference": "reference networks",
}
SHOWN = ("front", "dominated", "stopped", "over_budget")


def axes_of(snapshot: Snapshot) -> list[tuple[str, str]]:
    """The figures that have a better and a worse, by column and name."""
    found = [(name, quantity(snapshot, name)) for name in figures(snapshot)]
    return [(name, one.name) for name, one in found if one.best]


def shades_of(snapshot: Snapshot) -> list[tuple[str, str]]:
    """What colour and size can tell: nothing, a figure, a parameter."""
    named = [(name, quantity(snapshot, name).name) for name in figures(snapshot)]
    return [("", "–"), *named, *((name, name) for name in parameters_of(snapshot))]


def parameters_of(snapshot: Snapshot) -> list[str]:
    """The parameters of the space by name, in its order."""
    columns = [str(column) for column in snapshot.frame]
    return [column.removeprefix(PARAMETER) for column in columns if column.startswith(PARAMETER)]


def known(state: ViewState, option: str, offered: Sequence[tuple[str, str]], default: str) -> str:
    """An option where it is one that is offered, or the default."""
    value = state.option(option, default)
    return value if any(value == name for name, _ in offered) else default


# ---------------------------------------------------------------- the front


def draw_pareto(scene: Scene) -> list[Any]:
    """Any two or three figures as axes, what is shown of them, and budgets that cut the space."""
    state, snapshot = scene.state, scene.snapshot
    axes = axes_of(scene.whole)
    minimised = [name for name, direction in snapshot.objectives.items() if direction == "minimize"]
    x = known(state, "x", axes, minimised[0] if minimised else "params")
    y = known(state, "y", axes, "accuracy" if x != "accuracy" else "params")
    z = known(state, "of", [("", ""), *axes], "")
    logs = [name for name in state.option("log", "x").split(",") if name in ("x", "y")]
    shown = [name for name in state.option("show", ",".join(SHOWN)).split(",") if name in SWITCHES]
    options: dict[str, Any] = {"x": x, "y": y, "log_x": "x" in logs, "log_y": "y" in logs, "show": tuple(shown)}
    options |= {name: state.option(key) for name, key in (("colour", "color"), ("size", "size")) if state.option(key)}
    if z and z not in (x, y):
        options["z"] = z
    budgets, words = _budgets(scene, axes)
    options["budgets"] = budgets
    best: list[str] = []

    def finish(_figure: Any, info: Any) -> None:
        best.append(info.best)

    label = f"{quantity(snapshot, y).name} against {quantity(snapshot, x).name}: the front and the other networks"
    plot = scene.plot("pareto", label, height=TALL, finish=finish, **options)
    named = [tags.P(text) for text in best if text]
    return [
        tags.H2("The front"),
        block("controls", *_pareto_controls(state, scene.whole, x, y, z, logs, shown), className="controls"),
        block("budgets", *words, className="sliders", role="group", **attributes(aria_label="Budgets")),
        block("best", *named, **attributes(aria_live="polite")),
        tags.Section(plot, className="card"),
        tags.P("A click on a point opens its trial; a double click shows all of the plot again.", className="hint"),
    ]


def _pareto_controls(
    state: ViewState, whole: Snapshot, x: str, y: str, z: str, logs: list[str], shown: list[str]
) -> list[Any]:
    axes, shades = axes_of(whole), shades_of(whole)

    def switched(names: list[str], name: str) -> str:
        left = [one for one in names if one != name]
        return ",".join(left if name in names else [*names, name]) or "none"

    scales = [toggle(f"log {axis}", state.having(log=switched(logs, axis)), axis in logs) for axis in ("x", "y")]
    switches = [
        toggle(text, state.having(show=switched(shown, name)), name in shown) for name, text in SWITCHES.items()
    ]
    return [
        select("x", "Across", axes, x),
        select("y", "Up", axes, y),
        select("of", "Third objective", [("", "–"), *axes], z),
        select("color", "Colour", shades, state.option("color")),
        select("size", "Size", shades, state.option("size")),
        group("Scale", *scales),
        group("Show", *switches),
    ]


def _budgets(scene: Scene, axes: list[tuple[str, str]]) -> tuple[dict[str, float], list[Any]]:
    """The budgets that the address has, and a slider for each figure that is minimised."""
    finished, sliders, budgets = scene.whole.finished(), [], {}
    for name, title in axes:
        axis = quantity(scene.whole, name)
        values = finished[name].to_numpy(dtype=float)
        values = values[np.isfinite(values)]
        if axis.best != "minimize" or len(values) < 2 or values.min() == values.max():
            continue
        limit = scene.state.maxima.get(name)
        if limit is not None:
            budgets[name] = limit
        if name in scene.whole.objectives or name in ("params", "mult_adds", "latency_ms") or limit is not None:
            shown = "no limit" if limit is None else f"≤ {axis.text(limit)}"
            sliders.append(slider(name, title, float(values.min()), float(values.max()), limit, shown))
    return budgets, sliders


# ---------------------------------------------------------------- over time


def draw_history(scene: Scene) -> list[Any]:
    """How the front grew: hypervolume over trials, or over time."""
    by = "time" if scene.state.option("by") == "time" else "trials"
    toggles = [toggle(name, scene.state.having(by=name), name == by) for name in ("trials", "time")]
    return [
        tags.H2("History"),
        block("controls", group("Over", *toggles), className="controls"),
        tags.Section(
            scene.plot("hypervolume", f"hypervolume of the front over {by}", height=TALL, by=by), className="card"
        ),
        card("Errors of all networks", scene.plot("errors", "the distribution of errors", opens=False)),
    ]


def draw_curves(scene: Scene) -> list[Any]:
    """Learning curves of the front, of what runs, and of the latest others; or of the trials that are named."""
    named = scene.state.trials
    snapshot, options = scene.snapshot, dict[str, Any]()
    if named:
        snapshot = replace(scene.whole, curves=scene.live.curves(scene.whole.name, named))
        options = {"numbers": named}
    field = text_input("trials", "Only these trials", ",".join(map(str, named)), "such as 3,7")
    return [
        tags.H2("Learning curves"),
        block("controls", field, className="controls"),
        tags.Section(
            draw(snapshot, "curves", "validation accuracy by epoch", height=TALL, opens=False, **options),
            className="card",
        ),
    ]


def draw_timeline(scene: Scene) -> list[Any]:
    """What ran when."""
    return [
        tags.H2("Timeline"),
        tags.Section(
            scene.plot("timeline", "one bar a trial, from its begin to its end", height=TALL), className="card"
        ),
        tags.P("Lanes are trials at the same time; which worker trained which is not recorded.", className="hint"),
    ]


# ---------------------------------------------------------------- what decides


def draw_importance(scene: Scene) -> list[Any]:
    """Which parameters decide each objective, and one objective against one parameter."""
    state, snapshot = scene.state, scene.snapshot
    names = [(name, name) for name in parameter_names(scene.whole)]
    axes = axes_of(scene.whole)
    if not names:
        return [tags.H2("Importance"), block("why", empty("this space has no parameters: there is nothing to compare"))]
    x, y = known(state, "x", names, names[0][0]), known(state, "y", axes, next(iter(snapshot.objectives)))
    label = f"{quantity(scene.whole, y).name} against {x}"
    return [
        tags.H2("Importance"),
        tags.Section(
            scene.plot("importance", "importance of each parameter for each objective", opens=False), className="card"
        ),
        block("controls", select("x", "Parameter", names, x), select("y", "Objective", axes, y), className="controls"),
        tags.Section(scene.plot("slice", label, parameter=x, objective=y), className="card"),
    ]


def draw_scaling(scene: Scene) -> list[Any]:
    """Error against a size with its fits, width by resolution, and which way of shrinking is the best."""
    state = scene.state
    sizes = [(name, quantity(scene.whole, name).name) for name in ("mult_adds", "params", "activations")]
    sizes = [(name, text) for name, text in sizes if name in scene.whole.frame.columns]
    x = known(state, "x", sizes, "mult_adds")
    with with_options(scene.snapshot, scene.storage_url) as snapshot:
        laws = draw(snapshot, "scaling", f"error against {x}, with the fitted laws", height=TALL, x=x)
    heat = scene.plot("heat", "mean accuracy by two parameters", opens=False)
    shapes = scene.plot("shapes", "accuracy by way of shrinking")
    cards = [card("Two parameters", heat), card("Thinner, shallower or of lower resolution", shapes)]
    return [
        tags.H2("Scaling"),
        block("controls", select("x", "Size", sizes, x), className="controls"),
        tags.Section(laws, className="card"),
        tags.Div(cards, className="cards"),
    ]


def draw_latency(scene: Scene) -> list[Any]:
    """Latency as predicted and as measured, and how the machine drifted."""
    with with_options(scene.snapshot, scene.storage_url, latency=True) as snapshot:
        measured = draw(snapshot, "latency", "measured latency against what predicts it")
        drift = draw(snapshot, "drift", "drift of latency over time", opens=False)
    cards = [card("Predicted and measured", measured), card("Drift of the machine", drift)]
    return [tags.H2("Latency"), tags.Div(cards, className="cards")]


def tried(draw_it: Any, scene: Scene) -> list[Any]:
    """A view, or why it cannot be drawn."""
    try:
        drawn: list[Any] = draw_it(scene)
    except MnetError as error:
        return [block("why", empty(str(error)))]
    return drawn
