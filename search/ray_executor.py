"""Trials through Ray Tune, on this machine or on a cluster. Ray is imported only when it runs."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mnet_search.search.driver import Driver
from mnet_search.search.ray_cluster import ROOMS, ClusterError, check_code, check_room, folder_of, join, start_own
from mnet_search.search.resources import Resources
from mnet_search.search.workers import environment

SHIPPED = {".py", ".yaml", ".typed"}
MOST_SHIPPED_BYTES = 20 * 2**20  # of the user's own modules
OWN_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_][\w.]*")


class RayExecutor:
    """Ray Tune on this machine, or on the cluster at `address` (or RAY_ADDRESS); actors are reused from trial to trial.

    `address` is HOST:PORT of a cluster that this machine is a node of, or "auto"; the cluster is never shut down.
    `ship_code` sends mnet-search, and the user's own modules below the working directory, to its nodes; without it
    both are installed there. A cluster that cannot be reached is given up after `connect_timeout_s` seconds.
    """

    def __init__(
        self,
        resources: Resources,
        address: str | None = None,
        ship_code: bool = False,
        connect_timeout_s: float = 30.0,
    ):
        self._resources, self._address = resources, address
        self._ship_code, self._connect_timeout_s = ship_code, connect_timeout_s

    def run(self, driver: Driver) -> None:
        """Returns when the driver is done or stopping. Ray is shut down if it was started here.

        Raises ClusterError for a cluster that cannot be used, MnetError where Ray does not start.
        """
        folder = Path(tempfile.mkdtemp(prefix="mnet-search-ray-"))
        quiet = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a function of the user's own finds its files as with the other executors
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's result files would be a second record
            "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # why a trial ended is the driver's to say
            "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # of an actor that went with its node
            "OMP_NUM_THREADS": str(self._resources.cpus_per_trial),
        }
        try:
            with environment(**quiet):
                import ray

                started = not ray.is_initialized()
                try:
                    self._connect(driver, folder)
                    with driver.signals():
                        while not driver.done:
                            self._tune(driver, folder)
                finally:
                    if started:  # a cluster is left, not ended
                        ray.shutdown()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _connect(self, driver: Driver, folder: Path) -> None:
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        if not logging.getLogger().isEnabledFor(logging.INFO):  # why a trial ended is the driver's to say
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        address = self._address or os.environ.get("RAY_ADDRESS")
        names = own_names(driver.space.to_json()) if address else set()
        if ray.is_initialized():  # by whoever called us
            address = None
        elif address and address != "local":
            sent = shipment(folder / "sent", names) if self._ship_code else {}
            join(address, self._connect_timeout_s, sent)
        else:
            address = None
            start_own(self._resources)
        check_room(ray.nodes(), self._resources)
        if address is not None:
            check_code(names, self._resources)

    def _tune(self, driver: Driver, folder: Path) -> None:
        from ray import tune

        from mnet_search.search.ray_trial import NoProgress, RayTrial, StudyScheduler, StudySearcher, StudyStopper

        searcher, resources = StudySearcher(driver), driver.resources
        use: dict[str, Any] = {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}
        tuner = tune.Tuner(
            tune.with_resources(RayTrial, use),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,
                max_concurrent_trials=resources.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=driver.study.name.replace("/", "_"),
                storage_path=str(folder),
                stop=StudyStopper(driver, searcher),
                failure_config=tune.FailureConfig(
                    max_failures=0
                ),  # a lost worker is the driver's affair: see on_worker_lost
                verbose=0,
                callbacks=[NoProgress()],
            ),
        )
        tuner.fit()
        if searcher.error is not None:
            raise searcher.error


# ---------------------------------------------------------------- sending code


def own_names(content: Any) -> set[str]:
    """The package.module:name texts of a space file that are no names of ours."""
    if isinstance(content, Mapping):
        return set().union(*map(own_names, content.values()))
    if isinstance(content, list | tuple):
        return set().union(*map(own_names, content))
    named = isinstance(content, str) and OWN_NAME.fullmatch(content) and not content.startswith("mnet_search.")
    return {str(content)} if named and _origin(str(content)) is not None else set()


def shipment(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Ray's runtime_env that sends mnet-search as it is here, and the folders of the user's own modules that lie at or
    below the working directory (*.py alone); copies are made in `folder`. Raises ClusterError where those are too much.
    """
    package = folder / "mnet_search"
    for room_name in ROOMS:
        (package / room_name).mkdir(parents=True, exist_ok=True)
        for path in folder_of(room_name).iterdir():
            if path.suffix in SHIPPED:
                shutil.copyfile(path, package / room_name / path.name)
    work = folder / "own"
    for root in sorted({root for name in names if (root := _root_of(name)) is not None}):
        _copy_code(root, work)
    return {"py_modules": [str(package)]} | ({"working_dir": str(work)} if work.exists() else {})


def _origin(name: str) -> Path | None:
    """The file of the top-level module of a name; None where there is none."""
    top = name.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = [*(spec.submodule_search_locations or []), spec.origin]
    return Path(places[0]) if places[0] else None


def _root_of(name: str) -> Path | None:
    """The folder on the path from which a module of the user's own is imported; None for one that is installed."""
    origin = _origin(name)
    root = origin.resolve().parent if origin is not None else None
    here = root is not None and root.is_relative_to(Path.cwd().resolve()) and "site-packages" not in root.parts
    return root if here else None


def _copy_code(root: Path, target: Path) -> None:
    found = list(_code_below(root, target.parent))
    total = sum(path.stat().st_size for path in found)
    if total > MOST_SHIPPED_BYTES:
        raise ClusterError(
            f"--ship-code: the *.py files below {root} are {total / 2**20:.0f} MB, more than the "
            f"{MOST_SHIPPED_BYTES / 2**20:g} that are sent; start in the folder of your own module, or install it on "
            "every node"
        )
    for path in found:
        to = target / path.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)


def _code_below(root: Path, left_out: Path) -> Iterator[Path]:
    """Every *.py file, but for hidden folders, environments and `left_out`."""
    for at, folders, files in os.walk(root):
        here = Path(at)
        inside = (here / name for name in folders if name[0] not in "._")
        folders[:] = [f.name for f in inside if f != left_out.resolve() and not (f / "pyvenv.cfg").exists()]
        yield from (here / name for name in files if name.endswith(".py"))
