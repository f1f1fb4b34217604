"""How many trials share a machine: decided by what real processes measured, within memory and cores, and kept."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnet_search.models.arch import MnetError
from mnet_search.search.packing import HEADROOM, LARGEST, MEDIAN, Images, Packing, Probe, decide, pack, subjects
from mnet_search.search.packing_probe import GAIN
from mnet_search.search.resources import (
    Gpu,
    Machine,
    Resources,
    decide_resources,
    gpu_share,
    halved,
    limit_gpu_memory,
    plain_rule,
    trials_per_gpu,
)
from mnet_search.search.run import open_space
from mnet_search.spaces import schema
from mnet_search.spaces.space import Space, SpaceError
from mnet_search.spaces.survey import Survey, survey

from processes import TINY, write_space

GB = 10**9
AUTO = schema.Resources()
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def tiny(folder: Path, text: str = TINY, *overrides: str) -> tuple[Space, Survey]:
    space = open_space(write_space(folder, text), list(overrides))
    return space, survey(space)


def machine(cores: int = 16, memory: int | None = 64 * GB, *gpus: int) -> Machine:
    return Machine("here", cores, memory, tuple(Gpu("a GPU", size) for size in gpus), "2.15")


def probes(
    rates: dict[int, float], peak: int = GB, own: int = 0, device_bytes: int | None = None, **more: object
) -> tuple[Probe, ...]:
    """The largest network alone, and the median one at so many images a second by how many side by side."""
    each = (0.1, peak, own, device_bytes)
    largest = Probe(LARGEST, "resnet18, 2 G mult-adds", 32, 1, 100.0, *each)
    found = [Probe(MEDIAN, "mobilenet_v1, 1 M mult-adds", 32, n, rate, *each) for n, rate in rates.items()]
    return (dataclasses.replace(largest, **more), *found)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the decision

RATES = st.dictionaries(st.sampled_from([1, 2, 3, 4, 8, 16]), st.floats(1, 1e5), max_size=6)
MACHINES = st.builds(
    lambda cores, memory, gpus: machine(cores, memory, *gpus),
    st.integers(1, 64),
    st.none() | st.integers(GB, 100 * GB),
    st.lists(st.integers(16 * GB, 80 * GB), max_size=4),
)


def on(where: Machine, rates: dict[int, float], peak: int, own: int) -> tuple[Probe, ...]:
    """Probes as they would be made there: a GPU says what there is on it."""
    return probes(rates, peak, own, min((gpu.memory_bytes for gpu in where.gpus), default=None))


@given(rates=RATES, where=MACHINES, peak=st.integers(1, 20 * GB), own=st.integers(0, GB), cpus=st.integers(1, 4))
def test_never_more_than_memory_and_cores_hold(
    rates: dict[int, float], where: Machine, peak: int, own: int, cpus: int
) -> None:
    asked = schema.Resources(cpus_per_trial=cpus)
    found = on(where, rates, peak, own)
    memory = found[0].device_bytes if where.gpus else where.memory_bytes
    if memory is not None and peak + own > memory:
        with pytest.raises(MnetError, match="the largest network"):
            decide(found, where, asked)
        return
    resources = decide(found, where, asked).resources
    assert resources.cpus_per_trial == cpus
    assert resources.concurrency * cpus <= max(where.cores, cpus)
    n = trials_per_gpu(resources.gpus_per_trial) if where.gpus else resources.concurrency
    assert memory is None or n == 1 or n * (HEADROOM * peak + own) <= memory
    if where.gpus:
        assert resources.concurrency <= n * len(where.gpus)
        smallest = min(gpu.memory_bytes for gpu in where.gpus)
        limit = resources.gpu_memory_fraction * smallest
        assert n == 1 or n * (limit + own) <= smallest
        assert limit == 0 or limit + smallest / 10**6 >= peak  # rounded down


@given(rates=RATES, peak=st.integers(1, 2 * GB), own=st.integers(0, GB), sizes=st.tuples(*[st.integers(3, 90)] * 2))
def test_more_memory_never_means_fewer_trials(
    rates: dict[int, float], peak: int, own: int, sizes: tuple[int, int]
) -> None:
    for gpus in ((), (80 * GB,)):
        fewer, more = (
            decide(probes(rates, peak, own, size * GB if gpus else None), machine(16, size * GB, *gpus), AUTO)
            for size in sorted(sizes)
        )
        assert fewer.resources.concurrency <= more.resources.concurrency


@given(rates=st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.floats(1, 1e5), min_size=2))
def test_more_trials_must_gain_and_ties_go_to_fewer(rates: dict[int, float]) -> None:
    n = decide(probes(rates), machine(), AUTO).resources.concurrency
    assert all(rate < GAIN * rates[n] for more, rate in rates.items() if more > n)
    assert all(max(rates.values()) >= GAIN * rate for fewer, rate in rates.items() if fewer < n)


def test_the_reason_says_what_was_measured() -> None:
    packed = decide(probes({1: 5120, 2: 9412, 4: 9500}, 310 * 10**6), machine(), AUTO)
    assert packed.reason == (
        "2 trials side by side: the median network (mobilenet_v1, 1 M mult-adds) trains 9,400 images/s in 2 processes "
        "against 5,100 alone; the largest needs 310 MB of 64 GB"
    )
    alone = decide(probes({1: 5000, 2: 5100, 4: 4000}), machine(), AUTO)
    assert alone.resources == Resources(1)
    assert alone.reason.startswith("1 trial at a time: the median network (mobilenet_v1, 1 M mult-adds) trains 5,000 ")
    assert " images/s alone against 5,100 in 2 processes; " in alone.reason


@pytest.mark.parametrize(
    ("found", "where", "n", "why"),
    [
        (probes({}, measured=False, step_seconds=4.0), machine(), 16, "a step of the largest (resnet18, 2 G mult-add"),
        (probes({}), machine(4), 4, "there was no time to measure side by side"),
        (probes({1: 10.0, 16: 12.0}), machine(16, 5 * GB), 4, "more do not fit the memory now"),
        (probes({}), machine(1), 1, "a trial has 1 of 1 cores"),
        (probes({}), machine(4, 2 * GB), 1, "two of the largest network (resnet18, 2 G mult-adds) do not fit the memo"),
        (probes({}, cpu_share=0.4), machine(8), 8, "other programs keep this machine too busy to measure; a process a"),
    ],
)
def test_without_side_by_side_figures_the_plain_rule_decides_within_memory(
    found: tuple[Probe, ...], where: Machine, n: int, why: str
) -> None:
    packed = decide(found, where, AUTO)
    assert (packed.resources.concurrency, why in packed.reason) == (n, True), packed.reason


def test_a_network_that_cannot_fit_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(MnetError) as caught:
        decide(probes({}, 30 * GB, GB), machine(16, 21 * GB), AUTO)
    assert str(caught.value) == (
        "the largest network (resnet18, 2 G mult-adds) needs 31 GB of memory to train on batches of 32, and there are "
        "21 GB; lower training.batch_size, or set a constraint (constraints.activations.max)"
    )
    assert caught.value.exit_code == 2


# ---------------------------------------------------------------- GPUs: the pure part


def test_trials_on_gpus_share_them_and_their_memory() -> None:
    found = probes({1: 100, 2: 190, 3: 250}, 2 * GB, GB // 2, 20 * GB)
    packed = decide(found, machine(16, None, 24 * GB, 24 * GB), AUTO)
    assert packed.resources == Resources(6, 1, 0.3333, 0.256944)  # (20 / 3 - 0.5) / 24
    assert packed.reason.startswith("3 trials side by side on each of 2 GPUs: the median network ")
    few_cores = decide(found, machine(4, None, 24 * GB, 24 * GB), AUTO)
    assert few_cores.resources == Resources(4, 1, 0.5, 0.395833)
    slow = decide(probes({}, 2 * GB, 0, 20 * GB), machine(16, None, 24 * GB), AUTO)
    assert slow.resources == Resources(1, 1, 1.0)


def test_a_given_concurrency_decides_the_share_and_memory_is_checked() -> None:
    gpus = machine(16, None, 24 * GB, 24 * GB)
    found = probes({}, 2 * GB, GB // 2, 20 * GB)
    packed = decide(found, gpus, schema.Resources(concurrency=5))
    assert (packed.resources.concurrency, packed.resources.gpus_per_trial) == (5, 0.3333)
    assert packed.resources.gpu_memory_fraction == 0.256944
    with pytest.raises(MnetError) as caught:
        decide(found, gpus, schema.Resources(concurrency=16))
    assert str(caught.value) == (
        "resources.concurrency is 16: each of 8 trials on one GPU needs up to 2.9 GB (the largest network, resnet18, "
        "2 G mult-adds) of 20 GB; set it to auto, or to 12 or less"
    )


def test_a_given_share_of_gpus_decides_the_concurrency() -> None:
    gpus = machine(16, None, 24 * GB, 24 * GB, 24 * GB)
    assert decide((), gpus, schema.Resources(gpus_per_trial=0.4)).resources == Resources(6, 1, 0.4, 0.47763)
    assert decide((), gpus, schema.Resources(gpus_per_trial=1.0)).resources == Resources(3, 1, 1.0)
    assert decide((), gpus, schema.Resources(gpus_per_trial=2.0)).resources == Resources(1, 1, 2.0)
    assert decide((), gpus, schema.Resources(gpus_per_trial=0.0)).resources == Resources(16, 1, 0.0)


@given(n=st.integers(1, 200), gpus=st.integers(1, 8))
def test_so_many_shares_fit_a_gpu_as_ray_counts_them(n: int, gpus: int) -> None:
    share = gpu_share(n)
    assert n * share <= 1
    assert share == round(share, 4)
    assert trials_per_gpu(share) >= n
    assert plain_rule(1, share, "auto", n_cores=10_000, n_gpus=gpus).concurrency == gpus * trials_per_gpu(share)


def test_half_as_many_after_memory_ended() -> None:
    assert halved(Resources(8, 2)) == Resources(4, 2)
    assert halved(Resources(3)) == Resources(1)
    assert halved(Resources(1)) is None
    assert halved(Resources(8, 1, 0.25, 0.2)) == Resources(4, 1, 0.5, 0.4)
    assert halved(Resources(6, 1, 0.3333, 0.3)) == Resources(2, 1, 1.0, 0.0)
    assert halved(Resources(4, 1, 1.0)) is None
    assert halved(Resources(2, 1, 2.0)) is None


@given(n=st.integers(1, 64), gpus=st.integers(1, 4))
def test_halving_ends_with_one_trial_alone_on_each_gpu(n: int, gpus: int) -> None:
    now: Resources | None = Resources(n * gpus, 1, gpu_share(n), 0.9 / n if n > 1 else 0.0)
    seen = 0
    while now is not None:
        last, now, seen = now, halved(now), seen + 1
        assert last.gpu_memory_fraction * trials_per_gpu(last.gpus_per_trial) < 1
    assert last == Resources(gpus, 1, 1.0, 0.0)
    assert seen <= 7


def test_a_limit_without_a_gpu_does_nothing() -> None:
    limit_gpu_memory(0.0)
    if not torch.cuda.is_available():
        limit_gpu_memory(0.5)


# ---------------------------------------------------------------- pack


@WITHOUT_GPU
def test_a_space_is_measured_once_and_the_next_command_starts_no_process(tmp_path: Path) -> None:
    space, found = tiny(tmp_path)
    cache, told = tmp_path / "runs" / "packing.json", []
    packed = pack(space, found, AUTO, cache, tell=told.append)
    assert told == ["measuring how many trials fit side by side, 4 s at most"]
    assert 1 <= packed.resources.concurrency <= len(os.sched_getaffinity(0))
    assert packed.resources.gpus_per_trial == packed.resources.gpu_memory_fraction == 0
    assert packed.probes[0].network == LARGEST
    assert packed.probes[0].batch == 50
    assert packed.reason.endswith("B")
    kept = json.loads(cache.read_text())
    assert kept["reason"] == packed.reason
    assert kept["for"]["space"] == space.hash
    program = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from processes import children\n"
        "from mnet_search.search.packing import pack\n"
        "from mnet_search.search.run import open_space\n"
        "from mnet_search.spaces.schema import Resources\n"
        "from mnet_search.spaces.survey import survey\n"
        "space = open_space(Path('tiny.yaml'), [])\n"
        "packed = pack(space, survey(space), Resources(), Path(sys.argv[1]), tell=print)\n"
        "print(packed.resources.concurrency, len(packed.probes), children(os.getpid()))\n"
    )
    arguments = [sys.executable, "-c", program, str(cache), str(Path(__file__).parent)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.stdout == f"{packed.resources.concurrency} {len(packed.probes)} []\n", done.stderr


class Measures(Exception):  # noqa: N818
    """What is told before a measurement, which it prevents."""


def would_measure(space: Space, found: Survey, asked: schema.Resources, cache: Path) -> bool:
    def tell(text: str) -> None:
        raise Measures(text)

    try:
        pack(space, found, asked, cache, tell=tell)
    except Measures:
        return True
    return False


@WITHOUT_GPU
def test_a_damaged_or_foreign_file_is_ignored_and_written_anew(tmp_path: Path) -> None:
    space, found = tiny(tmp_path)
    cache = tmp_path / "packing.json"
    pack(space, found, AUTO, cache)
    whole = cache.read_text()
    foreign, torn = json.loads(whole), json.loads(whole)
    foreign["for"]["machine"]["hostname"] = "elsewhere"
    torn["probes"][0]["peak_bytes"] = "much"
    for damage in ("", "{torn", "[]", '{"for": 1}', "\xff", whole[:-9], json.dumps(foreign), json.dumps(torn)):
        cache.write_text(damage, encoding="latin-1")
        assert would_measure(space, found, AUTO, cache), damage
    pack(space, found, AUTO, cache)
    assert not would_measure(space, found, AUTO, cache)
    assert would_measure(space, found, schema.Resources(cpus_per_trial=2), cache)  # other resources are asked for


@WITHOUT_GPU
def test_a_file_that_cannot_be_written_is_told_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    told: list[str] = []
    pack(*tiny(tmp_path), AUTO, tmp_path / "taken" / "packing.json", tell=told.append)
    assert re.search(r"taken/packing.json: what was measured cannot be kept \(File exists\)$", told[-1])


@WITHOUT_GPU
def test_what_is_given_is_not_measured(tmp_path: Path) -> None:
    space, found = tiny(tmp_path)
    packed = pack(space, found, schema.Resources(concurrency=3), None, tell=pytest.fail)
    assert packed == Packing(Resources(3), "3 trials side by side: as asked, nothing was measured")


@WITHOUT_GPU
def test_where_nothing_is_trained_or_a_cluster_trains_nothing_is_measured(tmp_path: Path) -> None:
    space, found = tiny(tmp_path)
    cores = len(os.sched_getaffinity(0))
    for more, reason in (
        ({"trained": False}, "nothing is trained here, so nothing is measured"),
        ({"cluster": True}, "a cluster trains, so this machine is not measured"),
    ):
        packed = pack(space, found, AUTO, tmp_path / "packing.json", tell=pytest.fail, **more)  # type: ignore[arg-type]
        assert packed.resources == Resources(cores) == decide_resources(1, "auto", "auto")
        assert packed.reason.endswith(reason)
    theirs = pack(space, found, schema.Resources(gpus_per_trial=1.0), None, cluster=True)  # where there may be GPUs
    assert theirs.resources.gpus_per_trial == 1
    own, found = tiny(tmp_path, TINY + "evaluate: some.module:function\n")
    packed = pack(own, found, schema.Resources(cpus_per_trial=2), None, tell=pytest.fail)
    assert packed.resources == Resources(max(cores // 2, 1), 2)
    assert not (tmp_path / "packing.json").exists()


@WITHOUT_GPU
def test_a_gpu_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(MnetError) as caught:
        pack(*tiny(tmp_path), schema.Resources(gpus_per_trial=1.0), None)
    assert str(caught.value) == (
        "resources.gpus_per_trial is 1, but torch sees no GPU on this machine; set it to 0 or auto"
    )


@WITHOUT_GPU
def test_a_batch_that_no_machine_holds_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    space, found = tiny(tmp_path, TINY, "training.batch_size=1000000", "parameters.width=[16]")
    started = time.monotonic()
    with pytest.raises(
        MnetError, match=r"^the largest network \(mobilenet_v1, .*\) needs at least .* on batches of 1000"
    ):
        pack(space, found, AUTO, None)
    assert time.monotonic() - started < 5
    networks = subjects(space, found, AUTO, Images(train=160), "cpu")  # but no batch has more images than there are
    assert networks[LARGEST].job.batch == 160


def test_the_median_is_by_mult_adds_and_the_largest_by_memory(tmp_path: Path) -> None:
    space, found = tiny(tmp_path, TINY, "parameters={width: [0.1, 0.2, 0.4], resolution: 12, stem_stride: 1}")
    networks = subjects(space, found, AUTO, Images(), "cpu")
    assert [networks[name].job.options["width"] for name in (MEDIAN, LARGEST)] == [0.2, 0.4]
    assert re.fullmatch(r"mobilenet_v1, [\d.]+ [kM] mult-adds", networks[MEDIAN].about)
    varied, found = tiny(
        tmp_path, TINY, "parameters={width: [0.1, 0.2], resolution: 12, stem_stride: 1, training.batch_size: [8, 64]}"
    )
    assert subjects(varied, found, AUTO, Images(), "cpu")[LARGEST].job.batch == 64


@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_concurrency_below_one_is_refused_with_its_place(tmp_path: Path, value: str) -> None:
    with pytest.raises(SpaceError, match=r"resources\.concurrency: .*(greater than or equal to 1|1 or more)") as caught:
        open_space(write_space(tmp_path), [f"resources.concurrency={value}"])
    assert caught.value.exit_code == 2
