"""Networks that are asked for one by one, in a study of a space: the suggestions of `mnet-search fit --suggest`."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from mnet_search.models.arch import MnetError
from mnet_search.spaces.listed import complete
from mnet_search.spaces.schema import OneValue, Strict
from mnet_search.spaces.space import Params, Space
from mnet_search.spaces.yamlfile import read, validate
from mnet_search.studies.frame import load
from mnet_search.studies.store import Store


class PlanFile(Strict):
    """What `mnet-search fit --suggest N -o FILE` writes: assignments to the parameters of a study's space."""

    study: str = Field(description="the study that they belong to")
    form: str | None = Field(default=None, description="the fit that they were suggested by")
    networks: list[dict[str, OneValue]] = Field(min_length=1)


@dataclass(frozen=True)
class Plan:
    """The networks to train next, and the finished trials that the study then has."""

    networks: tuple[Params, ...]
    n_trials: int


def read_plan(path: Path, space: Space, study: str, storage: str) -> Plan:
    """The plan in a file, for a study of this space. Runs of its networks that are finished already are not asked for
    again, so the same plan again adds nothing. Raises MnetError.
    """
    values, source = read(path)
    file = validate(values, source, PlanFile)
    if file.study != study:
        raise MnetError(f"{path}: it is for study {file.study!r}, and this run is {study!r}; give --study {file.study}")
    networks = []
    for index, given in enumerate(file.networks):
        try:
            networks.append(complete(space.parameters, given))
        except ValueError as error:
            raise source.error(("networks", str(index)), str(error)) from None
    with Store(storage) as store:
        frame, chosen = load(store, study), store.chosen(study)
    finished = frame.loc[frame["state"] == "finished", "number"]
    runs = Counter(_keys(space, (chosen[int(number)] for number in finished)))
    wanted = space.file.search.repeats if isinstance(space.file.search.repeats, int) else 1
    missing = sum(max(0, wanted - runs[key]) for key in dict.fromkeys(_keys(space, networks)))
    return Plan(tuple(networks), max(1, len(finished) + missing))


def _keys(space: Space, networks: Iterable[Params]) -> list[str]:
    return [space.key(params) for params in networks]


class Planned:
    """Planned networks as the driver takes them, one after another. They are trained to their end: a scheduler that
    stopped some of them would leave the fit without the points it asked for.
    """

    def __init__(self, space: Space, networks: Sequence[Params]):
        self._space = space
        self._left = deque(networks)
        self._keys = set(_keys(space, networks))

    def __bool__(self) -> bool:
        """Whether there is a plan, done or not."""
        return bool(self._keys)

    def holds(self, key: str) -> bool:
        return key in self._keys

    def allows(self, key: str) -> bool:
        """Whether a network may be trained: any one, where there is no plan."""
        return not self._keys or key in self._keys

    def next(self, known: Collection[str], stopped: Callable[[str], object]) -> Params | None:
        """The next network that is not `known`, or that was `stopped` early; None where none is left."""
        while self._left:
            params = self._left.popleft()
            key = self._space.key(params)
            if key not in known or stopped(key):
                return params
        return None
