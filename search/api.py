"""The search from Python: the same as the command line, with callables, typed errors, and no exit of the process.

from mnet_search.search.api import Search

result = Search("spaces/mobilenet.yaml", n_trials=20).run()
print(result.front[["number", "accuracy", "params"]])

def look_up(trial):                        # in place of training
    return {"accuracy": TABLE[trial.arch.id]}

result = Search("spaces/macro.yaml", evaluate=look_up, study="table").run()
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mnet_search.models.arch import MnetError
from mnet_search.search.own_evaluation import OwnTrial
from mnet_search.search.progress import Quiet
from mnet_search.search.run import KNOWN, RunOptions, check_training, fit_to_data, open_space, run_search
from mnet_search.search.settings import FailureBudgetError, Progress
from mnet_search.spaces.space import Space, SpaceError, make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies.confidence import front_confidence
from mnet_search.studies.database import StorageError
from mnet_search.studies.frame import load
from mnet_search.studies.store import Store

__all__ = ["FailureBudgetError", "MnetError", "OwnTrial", "Result", "Search", "SpaceError", "StorageError"]

Evaluate = Callable[[OwnTrial], Mapping[str, float]]


@dataclass(frozen=True)
class Result:
    """What a search came to. `trials` has a row a trial (`studies.frame.load`), `front` a row for each network of the
    front with `n` runs and the `probability` that it belongs there; `exhausted`: every network of the space is known.
    """

    study: str
    n_finished: int
    n_new: int
    n_failed: int
    n_stopped: int
    exhausted: bool
    trials: pd.DataFrame
    front: pd.DataFrame


class Search:
    """A search over a space, made ready; `run` carries it out, and again goes on with it."""

    def __init__(
        self,
        space: Space | str | Path | Mapping[str, Any],
        *,
        evaluate: Evaluate | None = None,
        overrides: Iterable[str] = (),
        storage: str = "sqlite:///mnet-search.db",
        study: str | None = None,
        runs_dir: str | Path = "runs",
        executor: str = "local",
        n_trials: int | None = None,
        seed: int | None = None,
        max_failures: int = 10,
        retry_failed: bool = False,
        timeout_s: float | None = None,
        join: bool = False,
        address: str | None = None,
        progress: Progress | None = None,
    ):
        """`space` is a file, its content, or a Space; `overrides` are PATH=VALUE as on the command line.

        `evaluate(trial) -> {objective: value}` takes the place of training and runs in this process, one trial after
        another, so that it may be any callable. Without it `executor` says who trains: local, ray, or inline (this
        process). Local and Ray start processes, so a script that uses them does so below `if __name__ == "__main__":`.
        `join` works beside other drivers on a study in PostgreSQL, `address` is that of a Ray cluster; a run that
        `timeout_s` seconds have ended can be run again.
        Raises SpaceError for what is wrong with the space.
        """
        self._evaluate = evaluate
        self._space = _space(space, list(overrides), evaluate)
        self._options = RunOptions(
            storage,
            study,
            str(runs_dir),
            n_trials,
            executor,
            max_failures,
            seed,
            retry_failed=retry_failed,
            timeout_s=timeout_s,
            join=join,
            address=address,
        )
        self._progress = progress or Quiet()

    def run(self, n_trials: int | None = None) -> Result:
        """Search until so many trials are finished (counted from the study's beginning) or the space is used up.

        Raises MnetError for bad input, StorageError for the database and its lock, FailureBudgetError where more than
        `max_failures` trials failed; KeyboardInterrupt after Ctrl-C, once everything is recorded.
        """
        options = self._options
        if n_trials is not None:
            options = RunOptions(**{**options.__dict__, "n_trials": n_trials})
        done = run_search(self._space, options, self._progress, self._evaluate)
        if done.stop_signal is not None and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        with Store(options.storage) as store:
            trials = load(store, done.study)
            images = store.provenance(done.study).get("validation_images")
            networks = front_confidence(trials, store.objectives(done.study), images).networks
        front = networks[networks["on_front"]].drop(columns="on_front").reset_index(drop=True)
        return Result(
            done.study, done.n_finished, done.n_new, done.n_failed, done.n_stopped, done.exhausted, trials, front
        )


def _space(space: Space | str | Path | Mapping[str, Any], overrides: list[str], evaluate: Evaluate | None) -> Space:
    """A checked space. One with a callable is known by the callable's name, so that its study is told apart."""
    own = {"evaluate": _name(evaluate)} if evaluate is not None else {}
    if isinstance(space, Space):
        if overrides:
            raise MnetError("overrides are for a space file; this Space is made already")
        return fit_to_data(check_training(replace(space, file=space.file.model_copy(update=own))))
    if isinstance(space, Mapping):
        if overrides:
            raise MnetError("overrides are for a space file; change the mapping itself")
        values = {**space, **own}
        name = str(values.pop("name", "space"))
        return fit_to_data(check_training(make_space(name, values, Source(name), KNOWN)))
    return open_space(Path(space), [*overrides, *(f"{key}={value}" for key, value in own.items())])


def _name(evaluate: Evaluate) -> str:
    """A callable's name as a space file has it; of one without a name of its own, with a digest of its code. Raises
    MnetError for what cannot be called.
    """
    if not callable(evaluate):
        raise MnetError(
            f"evaluate={evaluate!r} cannot be called; pass the function itself, or name it in the space (evaluate: "
            "package.module:function)"
        )
    code = getattr(evaluate, "__code__", None)
    module = getattr(evaluate, "__module__", None) or "callable"
    name = getattr(evaluate, "__qualname__", type(evaluate).__name__)
    if code is not None and "<" in name:
        told = (code.co_code, [constant for constant in code.co_consts if not hasattr(constant, "co_code")])
        name += f"_{hashlib.sha256(repr(told).encode()).hexdigest()[:8]}"
    return ":".join(re.sub(r"[^\w.]", "", part) for part in (module, name))
