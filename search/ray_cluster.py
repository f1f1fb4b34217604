"""Ray for a search: one of its own on this machine, or a cluster that others started. Joined clusters are checked first
(reachable, same versions, room for a trial, our code on every node) and never shut down.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnet_search.models.arch import MnetError
from mnet_search.search.resources import Resources
from mnet_search.search.workers import environment

ROOMS = ("models", "spaces", "studies", "dashboards", "search")
DRIVERS_OWN = ("PGPASSWORD", "MNET_STORAGE")  # environment variables that no worker has any business with
LOOK_TIMEOUT_S = 120.0  # for every node to say which code it has: a worker process starts, shipped code is unpacked

# Ray may retry for minutes, or end its process, when what answers is no cluster of its version. So it is tried in a
# process that can be ended. The last line that it prints is what came of it.
PROBE = """
import json, logging, sys
import ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False)
    said = {"nodes": ray.nodes()}
except BaseException as error:
    causes = []
    while error is not None:
        causes.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    said = {"error": causes}
print("\\n" + json.dumps(said, default=str), flush=True)
"""


class ClusterError(MnetError):
    """A Ray cluster cannot be reached, differs in version or code, or has no room for a trial."""

    exit_code = 3


# ---------------------------------------------------------------- reaching


def cluster_nodes(address: str, timeout_s: float = 30.0) -> list[dict[str, Any]]:
    """The nodes of a cluster, as `ray.nodes()` gives them, asked from a process of its own: this one stays without Ray.
    `address` is HOST:PORT, or "auto" for the cluster that `ray start` made this machine a node of.

    Raises ClusterError within `timeout_s`, whatever Ray does meanwhile.
    """
    began = time.monotonic()
    place = resolve(address)
    _knock(place, address, min(timeout_s, 5.0))
    command = [sys.executable, "-c", PROBE, "auto" if address == "auto" else place]
    variables = {name: value for name, value in os.environ.items() if name not in DRIVERS_OWN}
    variables |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": place}
    try:
        left = max(timeout_s - (time.monotonic() - began), 0.1)
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        why = f"something listens there, but Ray got no answer within {timeout_s:g} s"
        raise _unreachable(address, why) from None
    try:
        said = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        raise _unreachable(address, f"Ray ended with exit code {done.returncode}") from None
    if "error" in said:
        raise _refused(address, said["error"])
    nodes: list[dict[str, Any]] = said["nodes"]
    return nodes


def resolve(address: str) -> str:
    """HOST:PORT of an address. Raises ClusterError for a form that Ray Tune cannot use."""
    if address == "auto":
        return _started_here()
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: Ray Tune's driver cannot work through a Ray client (ray://); run mnet-search on a "
            f"machine of the cluster with --address auto, or with HOST:PORT as `ray start --head` prints it"
        )
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise ClusterError(f"--address {address!r}: write HOST:PORT, as `ray start --head` prints it, or auto")
    return address


def _started_here() -> str:
    """What `ray start` wrote down. Ray's own "auto" would also join a Ray that another program keeps for itself."""
    from ray._private.utils import read_ray_address

    found = read_ray_address()
    if not found:
        raise ClusterError(
            "--address auto: this machine is no node of a Ray cluster; start one with `ray start --head`, join one "
            "with `ray start --address HOST:PORT`, or leave --address out to use this machine alone"
        )
    return str(found)


def _knock(place: str, address: str, timeout_s: float) -> None:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        why = f"no answer within {timeout_s:g} s" if isinstance(error, TimeoutError) else _plain(error)
        raise _unreachable(address, why) from None


def _plain(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _unreachable(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers at {address} ({why}); start one there with `ray start --head`, give --address "
        "HOST:PORT as that prints it, or leave --address out to use this machine alone"
    )


def _refused(address: str, causes: Sequence[str]) -> ClusterError:
    """What Ray's own errors mean. Their texts are Ray's, so that what is not known is passed on."""
    text = " ".join(causes)
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", text)
    if "Version mismatch" in text and len(versions) == 2:
        theirs, ours = (f"Ray {ray} under Python {python}" for ray, python in versions)
        return ClusterError(
            f"the cluster at {address} runs {theirs}, this process runs {ours}; install the same versions of both on "
            "every machine"
        )
    if "uthenticat" in text:
        return ClusterError(
            f"the cluster at {address} asks for a token that this process does not have; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to a copy of the file ~/.ray/auth_token of the machine that started it"
        )
    if "IP address" in text or "node_ip_address" in text or "No node found" in text:
        return ClusterError(
            f"the cluster at {address} does not count this machine among its nodes; run "
            f"`ray start --address {address}` here first, or run mnet-search on one of them"
        )
    return _unreachable(address, " ".join(causes[-1].split())[:300])


# ---------------------------------------------------------------- starting


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Nothing of the database reaches Ray meanwhile: not its password and URL in the environment that Ray's processes
    inherit, and not in the driver's command line, which Ray would keep as the job's entry point.
    """
    try:
        import ray._private.utils as utils

        whole = utils.get_entrypoint_name
    except (ImportError, AttributeError):
        whole = None
    if whole is not None:
        utils.get_entrypoint_name = lambda: "mnet-search"
    try:
        with environment(**dict.fromkeys(DRIVERS_OWN)):
            yield
    finally:
        if whole is not None:
            utils.get_entrypoint_name = whole


def start_own(resources: Resources) -> None:
    """A Ray of our own on this machine, whatever else runs here. Raises MnetError where it cannot be started."""
    import ray

    try:
        with private():
            ray.init(
                "local",
                num_cpus=max(resources.concurrency * resources.cpus_per_trial, 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise MnetError(f"Ray could not be started: {error}; try --executor local") from error


def join(address: str, timeout_s: float, runtime_env: Mapping[str, Any]) -> None:
    """This process as a driver of a cluster. Raises ClusterError within about `timeout_s`."""
    import ray

    cluster_nodes(address, timeout_s)
    place = resolve(address)
    try:
        # By the name "auto" Ray uses this machine's own token; RAY_ADDRESS says where it then looks.
        with private(), environment(RAY_ADDRESS=place):
            ray.init(
                "auto" if address == "auto" else place,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=dict(runtime_env) or None,
            )
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise _refused(address, [f"{type(error).__name__}: {error}"]) from error


# ---------------------------------------------------------------- room


def room(node: Mapping[str, Any], cpus_per_trial: int, gpus_per_trial: float) -> int:
    """How many trials a node of `ray.nodes()` has room for at once. A share of a GPU is of one GPU."""
    has = node.get("Resources", {}) if node.get("Alive", True) else {}
    by_cpu = int(has.get("CPU", 0) // cpus_per_trial)
    if gpus_per_trial <= 0:
        return by_cpu
    whole = int(has.get("GPU", 0))
    share = whole * int(1 / gpus_per_trial + 1e-9) if gpus_per_trial < 1 else int(whole // gpus_per_trial)
    return min(by_cpu, share)


def cluster_concurrency(nodes: Sequence[Mapping[str, Any]], cpus_per_trial: int, gpus_per_trial: float) -> int:
    """How many trials a cluster's living nodes (`ray.nodes()`) have room for at once; 0 where none has any."""
    return sum(room(node, cpus_per_trial, gpus_per_trial) for node in nodes)


def check_room(nodes: Sequence[Mapping[str, Any]], resources: Resources) -> None:
    """Raises ClusterError where no living node could ever run a trial: Ray would wait for one without an end."""
    if cluster_concurrency(nodes, resources.cpus_per_trial, resources.gpus_per_trial):
        return
    living = [node["Resources"] for node in nodes if node.get("Alive", True)]
    most_gpus, most_cpus = (max((has.get(name, 0) for has in living), default=0) for name in ("GPU", "CPU"))
    if resources.gpus_per_trial > most_gpus:
        what = f"resources.gpus_per_trial is {resources.gpus_per_trial:g}, but no node"
        has, mend = f"has more than {most_gpus:g} GPUs" if most_gpus else "has a GPU", "set it to 0 or auto"
    elif resources.cpus_per_trial > most_cpus:
        what = f"resources.cpus_per_trial is {resources.cpus_per_trial}, but no node"
        has, mend = f"has more than {most_cpus:g} CPUs", "lower it"
    else:
        what = f"a trial takes {resources.cpus_per_trial} CPUs and {resources.gpus_per_trial:g} GPUs, but no node"
        has, mend = "has both", "lower resources.cpus_per_trial"
    raise ClusterError(f"{what} of Ray's {len(living)} {has}; {mend}")


# ---------------------------------------------------------------- code


def code_version() -> str:
    """The version of mnet-search with a digest of its code as it is here."""
    total = hashlib.sha256()
    for room_name in ROOMS:
        folder = folder_of(room_name)
        for path in sorted(folder.glob("*.py")):
            total.update(f"{room_name}/{path.name}".encode() + path.read_bytes())
    try:
        version = importlib.metadata.version("mnet-search")
    except importlib.metadata.PackageNotFoundError:
        version = "shipped"
    return f"{version} (code {total.hexdigest()[:8]})"


def folder_of(room_name: str) -> Path:
    """Where a room's files are, installed or not."""
    spec = importlib.util.find_spec(f"mnet_search.{room_name}")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def check_code(own_names: Iterable[str], resources: Resources) -> None:
    """Every node that may run a trial has this code, and finds the user's own names (module:function). One clear error
    instead of a failure of each trial.

    Raises ClusterError naming the node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    modules = sorted({name.partition(":")[0] for name in own_names})

    # Nested, so that it is sent by value: a worker that lacks the package could not look it up.
    def look() -> dict[str, str]:
        import importlib

        try:
            cluster = importlib.import_module("mnet_search.search.ray_cluster")
        except ImportError as error:
            return {"lacks": f"mnet-search ({error})"}
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001  # a module of the user's own may raise anything
                return {"lacks": f"{name} ({type(error).__name__}: {error})"}
        return {"version": cluster.code_version()}

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in ray.nodes():
        if room(node, resources.cpus_per_trial, resources.gpus_per_trial):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote()] = node
    ours, deadline = code_version(), time.monotonic() + LOOK_TIMEOUT_S
    for future, node in asked.items():
        name = f"node {node.get('NodeManagerHostname', '?')} ({node.get('NodeManagerAddress', '?')})"
        try:
            said = ray.get(future, timeout=max(deadline - time.monotonic(), 0.1))
        except ray.exceptions.GetTimeoutError:
            raise ClusterError(
                f"{name} of the cluster did not start a worker within {LOOK_TIMEOUT_S:g} s; see `ray status` and the "
                "logs below /tmp/ray there"
            ) from None
        except ray.exceptions.RayError as error:
            if not node_lives(node["NodeID"]):
                continue  # it has left meanwhile; the others carry on
            raise ClusterError(f"{name} of the cluster cannot run trials: {_first_line(error)}") from None
        if "lacks" in said:
            raise _lacking(name, said["lacks"])
        if said["version"].rpartition("(code ")[2] != ours.rpartition("(code ")[2]:
            raise ClusterError(
                f"{name} of the cluster has mnet-search {said['version']}, this process {ours}; install the same on "
                "every machine, or send it with --ship-code"
            )


def _lacking(name: str, what: str) -> ClusterError:
    return ClusterError(
        f"{name} of the cluster cannot import {what}; install the same there, or send it with --ship-code (which takes "
        "your own modules from the folder that you start in)"
    )


def missing_code(text: str) -> ClusterError | None:
    """The error for a trial that failed with `text` since its node, which came later, lacks our code; None for another
    failure.
    """
    found = re.search(r"No module named '([\w.]+)'", text)
    if found is None or not re.search(r"failed to (be )?import", text):
        return None
    where = re.search(r"\bip[=:] ?([\w.:]+\w)", text)
    return _lacking(f"node {where[1]}" if where else "a node", f"{found[1]} ({found[0]})")


def node_lives(node_id: str) -> bool:
    import ray

    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
