"""What a view is drawn from: the state in the address, the study as it is, and that study as the filters leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from dash.development.base_component import Component

from mnet_search.dashboards.live import LiveStudies
from mnet_search.dashboards.page_parts import HEIGHT, empty, graph
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.quantities import is_choice, labels, quantity, short
from mnet_search.dashboards.snapshot import Snapshot
from mnet_search.dashboards.view_state import Brush, ViewState
from mnet_search.models.arch import MnetError
from mnet_search.studies.pareto import Array
from mnet_search.studies.store import Summary


@dataclass(frozen=True)
class Scene:
    """Everything a view may look at. `whole` is the study, `snapshot` what the brush leaves of it; `studies` all of the
    database, `live` where more can be read, and `storage_url` where all of it lies.
    """

    state: ViewState
    storage_url: str
    live: LiveStudies
    studies: tuple[Summary, ...]
    whole: Snapshot
    snapshot: Snapshot
    problems: tuple[str, ...] = ()

    @cached_property
    def summary(self) -> Summary:
        return next(one for one in self.studies if one.name == self.whole.name)

    def row(self, number: int) -> Mapping[str, Any]:
        """One trial of the whole study. Raises MnetError for a number that it has not."""
        found = self.whole.frame[self.whole.frame["number"] == number]
        if found.empty:
            last = f"0 to {self.whole.frame['number'].max()}" if len(self.whole.frame) else "none yet"
            raise MnetError(f"no trial {number} in this study (it has: {last})")
        return {str(key): value for key, value in found.iloc[0].to_dict().items()}

    def plot(
        self,
        name: str,
        label: str,
        *,
        part: str = "",
        height: int = HEIGHT,
        opens: bool = True,
        finish: Callable[[Any, Any], None] | None = None,
        **options: Any,
    ) -> Component:
        """A row of PLOTS, drawn from what the brush leaves; where it cannot be, why."""
        return draw(self.snapshot, name, label, part=part, height=height, opens=opens, finish=finish, **options)


def draw(
    snapshot: Snapshot,
    name: str,
    label: str,
    *,
    part: str = "",
    height: int = HEIGHT,
    opens: bool = True,
    keep: str = "",
    finish: Callable[[Any, Any], None] | None = None,
    **options: Any,
) -> Component:
    """A plot of a snapshot as a live part; `finish` may add to the figure what its info says. Its zoom is kept while
    the options and `keep` stay the same.
    """
    try:
        info = PLOTS[name].info(snapshot, **options)
    except MnetError as error:
        return empty(str(error))
    figure = PLOTS[name].figure(info)
    if finish is not None:
        finish(figure, info)
    return graph(
        part or name, figure, label, opens=opens, height=height, keep=f"{name} {sorted(options.items())!s} {keep}"
    )


# ---------------------------------------------------------------- the brush


def brushed(snapshot: Snapshot, brush: Mapping[str, Brush]) -> tuple[Snapshot, tuple[str, ...]]:
    """What a brush leaves of a study, and which of its axes the study does not have, in words."""
    frame, problems = snapshot.frame, []
    kept = np.ones(len(frame), dtype=bool)
    for name, wanted in brush.items():
        try:
            column = quantity(snapshot, name).column
        except MnetError as error:
            problems.append(f"filter {name} is left out: {error}")
            continue
        kept &= _within(frame[column], wanted)
    if kept.all():
        return snapshot, tuple(problems)
    inside = frame[kept]
    curves = snapshot.curves
    if len(curves):
        curves = curves[curves["number"].isin(inside["number"])]
    return replace(snapshot, frame=inside, curves=curves), tuple(problems)


def _within(values: pd.Series, wanted: Brush) -> Array:
    kept = np.zeros(len(values), dtype=bool)
    if wanted.ranges:
        figures = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
        for low, high in wanted.ranges:
            kept |= (figures >= low) & (figures <= high)
    if wanted.values:
        kept |= np.isin(labels(values).astype(str), wanted.values)
    return kept


def brush_words(snapshot: Snapshot, name: str, brush: Brush) -> str:
    """One filter in words, with the units of its axis."""
    try:
        axis = quantity(snapshot, name)
        text = short if is_choice(snapshot.frame, axis.column) else axis.text
        title = axis.name
    except MnetError:
        text, title = short, name
    words = []
    for low, high in brush.ranges:
        if low <= -1e299:
            words.append(f"at most {text(high)}")
        elif high >= 1e299:
            words.append(f"at least {text(low)}")
        else:
            words.append(f"{text(low)} to {text(high)}")
    return f"{title}: {' or '.join([*words, *brush.values])}"
