"""Trials through Ray Tune, on this machine or on a cluster. Ray is imported only when it runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mnet_search.models.arch import MnetError
from mnet_search.search.driver import Driver
from mnet_search.search.resources import Resources, environment


class RayExecutor:
    """Ray Tune on this machine (or on the cluster that RAY_ADDRESS names), with actors reused from trial to trial."""

    def __init__(self, resources: Resources):
        self._resources = resources

    def run(self, driver: Driver) -> None:
        """Returns when the driver is done or stopping. Ray is shut down if it was started here."""
        folder = Path(tempfile.mkdtemp(prefix="mnet-search-ray-"))
        quiet = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_AIR_NEW_OUTPUT": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # Tune's result files would be a second record
            "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "OMP_NUM_THREADS": str(self._resources.cpus_per_trial),
        }
        with environment(**quiet):
            import ray

            started = not ray.is_initialized()
            if started:
                _start_ray(self._resources)
            try:
                with driver.signals():
                    self._tune(driver, folder)
            finally:
                if started:
                    ray.shutdown()
                shutil.rmtree(folder, ignore_errors=True)

    def _tune(self, driver: Driver, folder: Path) -> None:
        from ray import tune

        from mnet_search.search.ray_trial import RayTrial, StudySearcher, StudyStopper

        searcher = StudySearcher(driver)
        use = {"cpu": self._resources.cpus_per_trial, "gpu": self._resources.gpus_per_trial}
        tuner = tune.Tuner(
            tune.with_resources(RayTrial, use),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=self._resources.concurrency,
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
                callbacks=[],
            ),
        )
        while not driver.done and not driver.stopping:
            tuner.fit()
            if searcher.error is not None:
                raise searcher.error


def _start_ray(resources: Resources) -> None:
    import logging

    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if not logging.getLogger().isEnabledFor(logging.INFO):  # why a trial ended is the driver's to say
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=max(resources.concurrency * resources.cpus_per_trial, 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, OSError) as error:
        raise MnetError(f"Ray could not be started or reached: {error}; try --executor local") from error
