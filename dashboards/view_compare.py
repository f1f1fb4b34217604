"""Up to five trials side by side, or two studies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dash import html as tags

from mnet_search.dashboards.compare_plot import errors_figure, fronts_figure, fronts_info
from mnet_search.dashboards.page_parts import block, card, empty, graph, link, select, table, text_input
from mnet_search.dashboards.scene import Scene, draw
from mnet_search.dashboards.snapshot import COSTS, percent, validation_images
from mnet_search.dashboards.trial_page import facts_of
from mnet_search.dashboards.view_state import MOST_TRIALS
from mnet_search.models.arch import MnetError
from mnet_search.studies.comparing import Comparison, StudyFrame, compare
from mnet_search.studies.store import Store

DRAWS = 300  # of what the means might be: a page is to be quick, and the command line draws more
UNGUIDED = ("grid", "random")  # samplers that do not look at what came of earlier trials
MOST_ROWS = 20_000  # trials of two studies together, up to which they are compared here


def draw_compare(scene: Scene) -> list[Any]:
    """Two studies where the address names another, else the trials that it names."""
    other, named = scene.state.option("with"), scene.state.trials
    others = [(one.name, one.name) for one in scene.studies if one.name != scene.whole.name]
    controls = [
        text_input("trials", f"Trials (up to {MOST_TRIALS})", ",".join(map(str, named)), "such as 3,7"),
        select("with", "Or the study with another", [("", "–"), *others], other),
    ]
    body = _studies(scene, other) if other else _trials(scene, named)
    return [tags.H2("Compare"), block("controls", *controls, className="controls"), *body]


# ---------------------------------------------------------------- trials


def _trials(scene: Scene, named: tuple[int, ...]) -> list[Any]:
    if not named:
        named = tuple(int(number) for number in scene.snapshot.front()["number"][:MOST_TRIALS])
    if not named:
        return [block("why", empty("nothing to compare yet: name trials above, once there are some"))]
    rows = [scene.row(number) for number in named]
    facts = [dict(facts_of(row)) for row in rows]
    names = list(dict.fromkeys(name for one in facts for name in one))
    columns = ["", *(link(f"trial {number}", scene.state.to("trial", number)) for number in named)]
    cells = [[_name(name, facts), *(one.get(name, "–") for one in facts)] for name in names]
    curves = replace(scene.whole, curves=scene.live.curves(scene.whole.name, named))
    return [
        tags.Section(block("table", table(columns, cells, label="Trials side by side")), className="card"),
        card(
            "Learning curves",
            draw(curves, "curves", "learning curves of these trials", opens=False, keep=str(named), numbers=named),
        ),
    ]


def _name(name: str, facts: list[dict[str, str]]) -> Any:
    differ = len({one.get(name) for one in facts}) > 1
    return tags.Strong(name) if differ and len(facts) > 1 else name


# ---------------------------------------------------------------- studies


def _studies(scene: Scene, other: str) -> list[Any]:
    try:
        pair = [_frame(scene, scene.whole.name), _frame(scene, other)]
        n_rows = sum(len(one.frame) for one in pair)
        if n_rows > MOST_ROWS:
            raise MnetError(f"{n_rows:,} trials are too many to compare here: mnet-search compare does it")
        found = compare(pair, n_draws=DRAWS)
    except MnetError as error:
        return [block("why", empty(str(error)))]
    fronts = fronts_figure(fronts_info(pair, found.cost))
    return [
        block("table", tags.Section(_volumes(found), className="card"), *_notes(found)),
        card(
            "Fronts", graph("fronts", fronts, "the fronts of both studies", opens=False, keep=f"{other} {found.cost}")
        ),
        card("Within budgets", block("budgets", _budgets(found))),
        card("Errors", graph("errors", errors_figure(found), "the errors of both", opens=False, keep=other)),
    ]


def _frame(scene: Scene, study: str) -> StudyFrame:
    snapshot = scene.whole if study == scene.whole.name else scene.live.snapshot(study)[1]
    with Store(scene.storage_url) as store:
        row = store.row(study)
    own, facts = snapshot.frame[snapshot.frame["imported"] == ""], snapshot.provenance
    chosen = row["space"].get("search", {}).get("sampler") not in UNGUIDED
    return StudyFrame(
        study,
        snapshot.frame,
        snapshot.objectives,
        validation_images=validation_images(facts),
        data_digest=facts.get("data_digest"),
        training=row["identity"]["training"],
        guided=len(own) > 0 and (chosen or bool((own["state"] == "stopped").any())),
    )


def _volumes(found: Comparison) -> Any:
    columns = ("study", "networks", "on its front", "of the hypervolume of both", "95 % interval", "has the most in")
    rows = [
        (
            one.study,
            f"{one.n_networks:,}",
            str(one.n_front),
            f"{one.share:.1%}",
            f"{one.low:.1%} to {one.high:.1%}",
            f"{one.best:.0%} of the draws",
        )
        for one in found.volumes
    ]
    return table(columns, rows, label="Hypervolume of both studies", numeric=(1, 2, 3))


def _budgets(found: Comparison) -> Any:
    cost = COSTS.get(found.cost)
    rows = []
    for at in found.budgets:
        budget = cost.text(at.budget) if cost else f"{at.budget:.4g}"
        for one in at.entries:
            spent = cost.text(one.cost) if cost else f"{one.cost:.4g}"
            rows.append(
                (f"≤ {budget}", one.study, f"trial {one.number}", percent(one.accuracy), spent, f"{one.wins:.0%}")
            )
    name = cost.name if cost else found.cost
    return table((name, "study", "its best", "accuracy", name, "wins"), rows, label="The best within budgets")


def _notes(found: Comparison) -> list[Any]:
    return [tags.P(note, className="hint") for note in found.notes]
