"""Which networks are trained again, with another seed: all of them some times, or those whose place is in doubt."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mnet_search.spaces.space import Params
from mnet_search.studies.confidence import doubtful, front_confidence
from mnet_search.studies.frame import load
from mnet_search.studies.writer import StudyWriter, TrialRecord

MOST_RUNS = 5  # of one network, where repeats are adaptive
BEGIN = 0.5  # share of the asked trials that are finished before anything is repeated: fronts move at first
SHARE = 1 / 3  # of the finished trials that may be repeats
LEAST_DOUBT = 0.09  # p (1 - p) of belonging to the front: from .1 to .9
LEAST_REPEATED = 3  # networks, from which noise is learnt where nothing else tells it


@dataclass(frozen=True)
class Repeat:
    """A network to train again, and the seed for it."""

    chosen: Params
    seed: int


def failed_only(records: Sequence[TrialRecord], key_of: Callable[[TrialRecord], str]) -> list[TrialRecord]:
    """The last failure of each run of a network that never ended well."""
    runs = {(key_of(r), r.seed): r for r in records if r.state == "failed"}
    for r in records:
        if r.state != "failed":
            runs.pop((key_of(r), r.seed), None)
    return list(runs.values())


class Repeats:
    """Keeps count of the runs of each network, by the space's key."""

    def __init__(
        self, wanted: int | str, n_trials: int, study: StudyWriter, of: Callable[[str], bool] = lambda _key: True
    ):
        """`of` says which networks, by key, are trained again at all."""
        self._wanted, self._n_trials, self._study, self._of = wanted, n_trials, study, of
        self._seeds: dict[str, set[int]] = defaultdict(set)
        self._finished: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._records: dict[int, tuple[str, TrialRecord]] = {}
        self._waiting: deque[tuple[str, TrialRecord]] = deque()
        self._asked_at = -1

    def begun(self, key: str, seed: int) -> None:
        """A run of a network was begun, now or earlier."""
        self._seeds[key].add(seed)

    def finished(self, key: str, record: TrialRecord) -> None:
        """A run of a network has finished, now or earlier."""
        self._finished[key] += 1
        self._records[record.number] = key, record
        if isinstance(self._wanted, int) and self._wanted > 1 and self._finished[key] == 1 and self._of(key):
            self._waiting.append((key, record))

    def failed(self, key: str) -> None:
        """A run of a network has failed in this run of the search: its seed is not tried again here."""
        self._failed[key] += 1

    def is_repeat(self, key: str) -> bool:
        """Whether the network was trained to its end before."""
        return self._finished[key] > 0

    def next(self, n_finished: int) -> Repeat | None:
        """The network to train again now; None where a new one is due."""
        if self._wanted == "adaptive":
            return self._doubtful(n_finished)
        while self._waiting:
            key, record = self._waiting[0]
            if len(self._seeds[key]) < int(self._wanted):
                return self._again(key, record)
            self._waiting.popleft()
        return None

    def _again(self, key: str, record: TrialRecord) -> Repeat:
        return Repeat(record.chosen, max(self._seeds[key]) + 1)

    def _doubtful(self, n_finished: int) -> Repeat | None:
        """The network whose belonging to the front is most in doubt, asked once for each number of finished trials."""
        n_repeats = sum(len(seeds) - 1 for seeds in self._seeds.values())
        if n_finished < BEGIN * self._n_trials or n_repeats >= SHARE * n_finished or n_finished == self._asked_at:
            return None
        self._asked_at = n_finished
        store, name = self._study.store, self._study.name
        images = store.provenance(name).get("validation_images")
        result = front_confidence(load(store, name), store.objectives(name), images)
        chances = dict(zip(result.networks["number"], result.networks["probability"], strict=True))
        first: list[int] = []
        if result.noise_source != "sampling":  # nothing tells the noise but runs of some networks of the front
            n_again = sum(len(seeds) > 1 for seeds in self._seeds.values())
            rows = result.networks[result.networks["on_front"]]
            once = [number for number in rows["number"] if len(self._seeds[self._records[number][0]]) == 1]
            first = once[: max(LEAST_REPEATED - n_again, 0)]
        for number in first or doubtful(result):
            key, record = self._records[number]
            running = len(self._seeds[key]) > self._finished[key] + self._failed[key]
            if not first and chances[number] * (1 - chances[number]) < LEAST_DOUBT:
                return None
            if not running and len(self._seeds[key]) < MOST_RUNS:
                return self._again(key, record)
        return None
