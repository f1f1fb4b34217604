"""Trials on a Ray cluster of several real nodes on this machine: killed, lacking code, of other versions, not there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnet_search.search import ray_cluster
from mnet_search.search.ray_cluster import ClusterError, check_room, cluster_concurrency, cluster_nodes, resolve
from mnet_search.search.ray_executor import own_names, shipment
from mnet_search.search.resources import Resources

from processes import TINY, load, search

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("ray")]

OWN = """\
family: mobilenet_v1
evaluate: cluster_functions:where
parameters: {width: [0.1, 0.12, 0.15, 0.2], resolution: [9, 12], depth: shallow, stem_stride: 1}
objectives: {accuracy: maximize, params: minimize}
search: {sampler: grid, n_trials: 3, seed: 5}
resources: {concurrency: 2}
"""
FUNCTIONS = """
import os
import mnet_search.search.trial

def where(trial):
    secrets = [name for name in ("PGPASSWORD", "MNET_STORAGE") if name in os.environ]
    shipped = "py_modules" in mnet_search.search.trial.__file__
    return {"accuracy": 1.0 if shipped and not secrets else 0.0}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    before = os.environ.pop("RAY_AUTH_MODE", None)
    quick = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()
    if before is not None:
        os.environ["RAY_AUTH_MODE"] = before


def test_a_node_that_dies_in_mid_trial_costs_no_trial_and_repeats_none(tmp_path: Path, cluster: Any) -> None:
    node = cluster.add_node(num_cpus=1, resources={"doomed": 1})
    text = TINY.replace("epochs: 2", "epochs: 24").replace("concurrency: 1", "concurrency: 3")
    killed: list[pd.DataFrame] = []

    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(Exception):  # the study is being made
                frame = load(tmp_path)
                if (frame[frame["state"] == "running"]["epochs"] >= 2).sum() == 3:
                    cluster.remove_node(node, allow_graceful=False)
                    killed.append(frame)
                    return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    done = search(tmp_path, text, executor="ray", address=cluster.address, n_trials=4)
    killer.join()
    assert killed, "the three nodes were never busy at once"
    frame = load(tmp_path)
    assert (done.n_finished, done.n_failed) == (4, 0)
    assert frame["state"].tolist() == ["finished"] * 4, frame[["number", "state", "reason"]]
    assert not frame.duplicated(["arch_id", "seed"]).any()
    assert sorted(frame["attempts"]) == [1, 1, 1, 2]
    assert (frame["epochs"] == 24).all()
    again = frame.loc[frame["attempts"] == 2, "number"].item()
    assert again in killed[0].loc[killed[0]["state"] == "running", "number"].tolist()


def test_a_joined_cluster_is_checked_told_no_secret_and_left_running(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    own_functions(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["mnet-search", "--storage", "postgresql://me:hidden@host/db"])
    ray_cluster.join(cluster.address, 30.0, {})
    try:
        jobs = ray._private.state.jobs()
        assert "mnet-search" in {job["Entrypoint"] for job in jobs}
        nodes = ray.nodes()
        assert cluster_concurrency(nodes, 1, 0.0) == 2
        with pytest.raises(ClusterError, match=r"resources\.gpus_per_trial is 0\.5, but no node of Ray's \d has a GPU"):
            check_room(nodes, Resources(1, 1, 0.5))
        with pytest.raises(ClusterError, match=r"cpus_per_trial is 2, but no node of Ray's \d has more than 1 CPUs"):
            check_room(nodes, Resources(1, 2))
        ray_cluster.check_code([], Resources(2))
        lacks = r"node .* of the cluster cannot import cluster_functions .*; install the same there, or send it"
        with pytest.raises(ClusterError, match=lacks):
            ray_cluster.check_code(["cluster_functions:where"], Resources(2))
    finally:
        ray.shutdown()
    assert sum(node["Alive"] for node in cluster_nodes(cluster.address)) == 3


def own_functions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module cluster_functions, below the working directory, in a folder that only this process has on its path."""
    (folder / "lib").mkdir()
    (folder / "lib" / "cluster_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(folder / "lib")
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "cluster_functions", raising=False)


def test_code_is_shipped_to_nodes_that_lack_it(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own_functions(tmp_path, monkeypatch)
    done = search(tmp_path, OWN, executor="ray", address=cluster.address, ship_code=True, study="shipped")
    assert done.n_finished == 3
    assert load(tmp_path, "shipped")["accuracy"].tolist() == [1.0, 1.0, 1.0]


def test_another_version_of_ray_is_named(cluster: Any) -> None:
    import ray
    from ray._raylet import GcsClient

    client = GcsClient(address=cluster.address)
    key, space = b"CLUSTER_METADATA", b"cluster"
    before = client.internal_kv_get(key, namespace=space)
    client.internal_kv_put(key, json.dumps({**json.loads(before), "ray_version": "2.50.1"}).encode(), True, space)
    try:
        ours = f"runs Ray 2.50.1 under Python .*, this process runs Ray {ray.__version__} under Python "
        with pytest.raises(ClusterError, match=ours) as caught:
            cluster_nodes(cluster.address)
    finally:
        client.internal_kv_put(key, before, True, space)
    assert caught.value.exit_code == 3


def test_a_cluster_that_is_not_there_is_given_up_in_time() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127.* \(connection refused\); start one"):
            cluster_nodes(address)
        assert time.monotonic() - began < 5
    with socket.create_server(("127.0.0.1", 0)) as silent:  # something listens, and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ClusterError, match=r"listens there, but Ray got no answer within 6 s\)") as caught:
            cluster_nodes(address, timeout_s=6.0)
        assert time.monotonic() - began < 8
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "ray://head:10001",
            r"Ray Tune's driver cannot work through a Ray client \(ray://\); run mnet",
        ),
        ("head", "write HOST:PORT, as `ray start --head` prints it, or auto"),
        ("head:99999", "write HOST:PORT"),
    ],
)
def test_addresses_that_cannot_be_used(address: str, says: str) -> None:
    with pytest.raises(ClusterError, match=says):
        resolve(address)


def test_room_for_trials() -> None:
    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    nodes = [node(CPU=8, GPU=2), node(CPU=3), node(alive=False, CPU=64, GPU=8), node()]
    assert cluster_concurrency(nodes, 1, 0.0) == 11
    assert cluster_concurrency(nodes, 2, 0.0) == 5  # four and one: a trial is of one node
    assert cluster_concurrency(nodes, 1, 1.0) == 2
    assert cluster_concurrency(nodes, 1, 0.4) == 4  # two a GPU
    assert cluster_concurrency(nodes, 1, 2.0) == 1
    assert cluster_concurrency(nodes, 6, 0.5) == 1
    assert cluster_concurrency([], 1, 0.0) == 0
    with pytest.raises(ClusterError, match="a trial takes 4 CPUs and 1 GPUs, but no node of Ray's 2 has both"):
        check_room([node(CPU=4), node(CPU=2, GPU=1)], Resources(1, 4, 1.0))


def test_a_trial_on_a_later_node_that_lacks_the_code_says_so() -> None:
    """What Ray 2.60 says of an actor that cannot import its class."""
    text = (
        "The actor died because of an error raised in its creation task, ray::ResourceTrainable.__init__() (pid=26122, "
        "ip=192.0.2.2, actor_id=283e)\nRuntimeError: The actor with name ResourceTrainable failed to import on the "
        "worker.\nModuleNotFoundError: No module named 'mnet_search.search.ray_trial'"
    )
    error = ray_cluster.missing_code(text)
    assert error is not None and error.exit_code == 3
    assert str(error).startswith("node 192.0.2.2 of the cluster cannot import mnet_search.search.ray_trial (No module")
    assert ray_cluster.missing_code("The actor died unexpectedly before finishing this task.") is None
    assert ray_cluster.missing_code("RuntimeError: No module named 'tqdm'") is None  # a trial's own affair


def test_names_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_functions(tmp_path, monkeypatch)
    content = {
        "evaluate": "cluster_functions:where",
        "data": {"path": "nowhere:x"},
        "blocks": [{"block": "json:dumps"}],
    }
    assert own_names(content) == {"cluster_functions:where", "json:dumps"}
    sent = shipment(tmp_path / "sent", own_names(content))
    assert {path.name for path in Path(sent["working_dir"]).rglob("*.py")} == {"cluster_functions.py"}
    (tmp_path / "lib" / "big.py").write_text("#" * 21 * 2**20)
    with pytest.raises(ClusterError, match=r"--ship-code: the \*\.py files below .* are 21 MB, more than the 20"):
        shipment(tmp_path / "again", own_names(content))


def test_a_ray_of_our_own_gets_neither_password_nor_url(tmp_path: Path) -> None:
    (tmp_path / "cluster_functions.py").write_text(FUNCTIONS.replace("shipped and not", "not"))
    (tmp_path / "own.yaml").write_text(OWN.replace("n_trials: 3", "n_trials: 1"))
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    variables |= {"PGPASSWORD": "hidden", "MNET_STORAGE": "sqlite:///study.db"}
    command = [sys.executable, "-m", "mnet_search.search.cli", "run", "own.yaml", "--executor", "ray"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path, "own")["accuracy"].tolist() == [1.0]
