"""Evaluation by a function of the user's own in place of training: a table, a simulator, another kind of network.

The space file names it (`evaluate: package.module:function`), or `api.Search` takes it. It is called as
`function(trial)` and returns a mapping of objective names to values; costs stay ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.tables import lookup
from mnet_search.search.training import Epoch, TrialFailed

REPORTED = ("accuracy", "validation_loss", "train_accuracy", "train_loss")


@dataclass(frozen=True)
class OwnTrial:
    """What an evaluate function is given: the network, the space's parameters as chosen, a seed, and `report`."""

    arch: Arch
    params: Mapping[str, Any]
    seed: int
    number: int
    _emit: Callable[[Epoch], None] = field(repr=False)

    def report(self, epoch: int, **figures: float) -> None:
        """A row of the learning curve, epochs counted from 1: accuracy, validation_loss, train_accuracy, train_loss.

        A scheduler may end the trial here; then this does not return. Raises MnetError for another figure.
        """
        unknown = [name for name in figures if name not in REPORTED]
        if unknown:
            raise MnetError(f"trial.report takes {', '.join(REPORTED)}, got {unknown[0]!r}")
        get = {name: float(figures.get(name, math.nan)) for name in REPORTED}
        self._emit(
            Epoch(
                epoch=int(epoch),
                train_loss=get["train_loss"],
                train_accuracy=get["train_accuracy"],
                validation_loss=get["validation_loss"],
                validation_accuracy=get["accuracy"],
                learning_rate=math.nan,
                images_per_second=math.nan,
                seconds=math.nan,
            )
        )


def find_function(name: str) -> Callable[[OwnTrial], Any]:
    """The function of a space file's `evaluate`. Raises MnetError where it cannot be imported or called."""
    module, _, path = name.partition(":")
    first, *rest = path.split(".")
    try:
        function: Any = lookup({}, f"{module}:{first}", "evaluate function")
    except MnetError:
        raise
    except Exception as error:  # what a module of the user's own does when it is imported
        raise MnetError(f"evaluate: importing {module} raised {type(error).__name__}: {error}") from error
    for attribute in rest:
        if not hasattr(function, attribute):
            raise MnetError(f"evaluate: {name} leads nowhere: there is no {attribute}")
        function = getattr(function, attribute)
    if not callable(function):
        raise MnetError(f"evaluate: {name} is no function of a trial, it is of type {type(function).__name__}")
    return function


def measured(returned: Any, wanted: tuple[str, ...]) -> dict[str, float]:
    """The figures that a function returned. Raises TrialFailed where they are no mapping, one of `wanted` is missing,
    or one is no finite number.
    """
    if not isinstance(returned, Mapping):
        raise TrialFailed(f"evaluate returned {_short(returned)}; it returns a mapping such as {{'accuracy': 0.93}}")
    figures: dict[str, float] = {}
    for name, value in returned.items():
        try:
            figures[str(name)] = float(value)
        except (TypeError, ValueError):
            raise TrialFailed(f"evaluate returned {_short(value)} for {name}, which is no number") from None
    for name in wanted:
        if name not in figures:
            has = ", ".join(figures) or "nothing"
            raise TrialFailed(f"evaluate returned no value for the objective {name}; it returned: {has}")
        if not math.isfinite(figures[name]):
            raise TrialFailed(f"evaluate returned {figures[name]} for the objective {name}, which is not finite")
    return figures


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
