"""What `fit` does: laws ranked or one in full, predictions, suggestions, and the files that it writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from mnet_search.dashboards.snapshot import validation_images
from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search import print_fit
from mnet_search.search.printing import check_file, echo, print_json, write_file
from mnet_search.spaces.space import Space
from mnet_search.spaces.yamlfile import parse_value
from mnet_search.studies import frame as frames
from mnet_search.studies import next_runs
from mnet_search.studies.fit_checks import doubts
from mnet_search.studies.laws import FORMS
from mnet_search.studies.next_runs import Forecast, Suggestion
from mnet_search.studies.observations import Observations, study_observations
from mnet_search.studies.scaling import DRAWS, Fit, Refused, check_variable, fit_all
from mnet_search.studies.scaling import fit as fit_one

if TYPE_CHECKING:
    import pandas as pd

    from mnet_search.studies.store import Store

MOST_SHOWN = 50
UNTRAINED = "untrained"
SIMPLEST = "log_log"
PAGE = (".html",)


@dataclass(frozen=True)
class Asked:
    """What the command line asks of a study."""

    form: str | None = None
    x: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    predict: tuple[str, ...] = ()
    suggest: int | None = None
    output: Path | None = None
    force: bool = False
    plot: Path | None = None
    draws: int = DRAWS
    seed: int = 0

    @property
    def one(self) -> bool:
        """Whether it names one law, or what to choose it by."""
        return self.form is not None or self.x is not None


def fit(store: Store, study: str, asked: Asked, *, as_json: bool) -> None:
    """Fit, print, and write what was asked for. Raises MnetError."""
    _check(asked)
    frame = frames.load(store, study)
    images = validation_images(store.provenance(study))
    observations = study_observations(frame, study, images, asked.where)
    fits, refused = _fits(observations, asked)
    best = fits[0]
    forecasts, suggestion = [], None
    if asked.predict or asked.suggest is not None:
        from mnet_search.search.run import stored_space  # seconds, with Ray and torch

        space = stored_space(store, study, [])
        states = _states(store, study, frame, space)
        forecasts = [_forecast(text, space, best, asked.where, states) for text in asked.predict]
        if asked.suggest is not None:
            everywhere = next_runs.space_networks(space, best.variables, asked.where)
            taken = {key for key, seen in states.items() if seen & {"finished", "running", "waiting", "failed"}}
            suggestion = next_runs.suggest(best, everywhere, taken, asked.suggest)
    if as_json:
        content = print_fit.content(study, fits, refused, forecasts, suggestion)
        print_json(content)
    else:
        print_fit.show(study, fits, refused, forecasts, suggestion, in_full=asked.one)
    if suggestion is not None and asked.output is not None:
        write_plan(asked.output, study, best.form_name, suggestion, force=asked.force)
        if not as_json:
            echo(f"\nwritten to {asked.output}; train them: mnet-search run SPACE --from-fit {asked.output}")
    if asked.plot is not None:
        write_file(asked.plot, _page(study, best), "--plot", force=asked.force, endings=PAGE)
        typer.echo(f"written to {asked.plot}", err=True)


def _check(asked: Asked) -> None:
    """What can be known to be wrong before anything is read."""
    if asked.form is not None:
        lookup(FORMS, asked.form, "form")
    if asked.x is not None:
        check_variable(asked.x)
    if asked.suggest is not None and asked.suggest < 1:
        raise MnetError(f"--suggest {asked.suggest}: ask for 1 network or more")
    if asked.output is not None and asked.suggest is None:
        raise MnetError(f"-o {asked.output}: it takes suggestions; say how many by --suggest N")
    for text in asked.predict:
        if text.strip() != UNTRAINED:
            parse_assignment("--predict", text.split())
    if asked.output is not None:
        check_file(asked.output, "-o", force=asked.force)
    if asked.plot is not None:
        check_file(asked.plot, "--plot", force=asked.force, endings=PAGE)
        if asked.output is not None and asked.output.resolve() == asked.plot.resolve():
            raise MnetError(f"-o and --plot are one file, {asked.plot}; give each a name of its own")


def _fits(observations: Observations, asked: Asked) -> tuple[list[Fit], list[Refused]]:
    """The laws that were asked for, best first. Raises MnetError where there is none."""
    settings = {"draws": asked.draws, "seed": asked.seed}
    if asked.form is not None and (asked.x is not None or lookup(FORMS, asked.form, "form").variables):
        return [fit_one(observations, asked.form, asked.x, **settings)], []
    fits, refused = fit_all(observations, asked.form, asked.x, **settings)
    if fits:
        return fits, refused
    if asked.x is not None:
        fit_one(observations, SIMPLEST, asked.x, **settings)  # raises with the reason of the simplest form
    nearest = min(refused, key=lambda r: (r.lacking, r.form != SIMPLEST))
    others = len(refused) - 1
    more = f"; {others} other law{'s are' if others > 1 else ' is'} refused too" if others else ""
    raise MnetError(
        f"no law can be fitted to the {len(observations)} finished networks; {nearest.form} of "
        f"{', '.join(nearest.variables)} comes nearest: {nearest.reason}{more}"
    )


def parse_assignment(option: str, items: Sequence[str]) -> dict[str, Any]:
    """`width=0.4`, `resolution=24` as values. Raises MnetError."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise MnetError(f"{option} {item}: write PARAMETER=VALUE, for example width=0.4")
        found[name.strip()] = parse_value(value)
    return found


def _states(store: Store, study: str, frame: pd.DataFrame, space: Space) -> dict[str, set[str]]:
    """The states of each network's trials, by the space's key of it."""
    chosen = store.chosen(study)
    found: dict[str, set[str]] = {}
    for number, arch_id, state in zip(frame["number"], frame["arch_id"], frame["state"], strict=True):
        found.setdefault(space.key(chosen.get(int(number), {}), str(arch_id)), set()).add(str(state))
    return found


def _forecast(
    text: str, space: Space, best: Fit, where: Mapping[str, Any], states: Mapping[str, Collection[str]]
) -> Forecast:
    """One network's accuracy, or those of all that no trial has finished, best first."""
    if text.strip() != UNTRAINED:
        try:
            params = next_runs.assignment(space, parse_assignment("--predict", text.split()), where)
        except MnetError as error:
            raise MnetError(str(error) if str(error).startswith("--") else f"--predict {text!r}: {error}") from None
        shown = [next_runs.describe_network(space, params, best.variables)]
        total = 1
    else:
        left = next_runs.space_networks(space, best.variables, where)
        left = [network for network in left if "finished" not in states.get(network.key, ())]
        total = len(left)
        if not left:
            raise MnetError("--predict untrained: every network of the space within its budgets is trained")
        errors = best.error(next_runs.columns(left, best.variables))
        shown = [left[place] for place in np.argsort(errors, kind="stable")[:MOST_SHOWN]]
    predicted = best.predict(next_runs.columns(shown, best.variables))
    return Forecast(tuple(shown), predicted, tuple(next_runs.outside(best, n.sizes) for n in shown), total)


# ---------------------------------------------------------------- files


def write_plan(path: Path, study: str, form: str, suggestion: Suggestion, *, force: bool = False) -> None:
    """The suggestions as a file that `mnet-search run SPACE --from-fit FILE` reads. Raises MnetError."""
    import io

    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    networks = []
    for network in suggestion.networks:
        row = CommentedMap(network.params)
        row.fa.set_flow_style()
        networks.append(row)
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 100_000  # one network, one line
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump({"study": study, "form": form, "networks": networks}, text)
    write_file(path, text.getvalue().encode(), "-o", force=force)


def _page(study: str, best: Fit) -> bytes:
    from mnet_search.dashboards.scaling_plot import fit_info, fit_page

    return fit_page(fit_info(f"Study {study}", best, doubts(best))).encode()
