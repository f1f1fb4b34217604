"""The latency table: which layers a network has, what the fit makes of their times, where tables are kept and refused.
Timings are checked for structure and for wide gaps only, so that a busy machine breaks nothing.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnet_search.models import layer_timing
from mnet_search.models.arch import Arch, Branches, Chain, Conv, Flatten, Linear, MnetError, Pool, Residual, Shape
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.latency import Protocol, folded, random_images
from mnet_search.models.latency_table import (
    CONSTANTS,
    FACTORS,
    LatencyTable,
    Layer,
    calibrate,
    design_row,
    judge,
    layers_of,
    refuse_other_device,
    select,
    sizes,
    spearman,
)
from mnet_search.models.layer_timing import ClockMarks, NetworkTimes, Stepwise, build_table, fill, fingerprint
from mnet_search.search.cli import run_command
from mnet_search.studies import latency_tables
from mnet_search.studies.store import Store

HERE = {"processor": "Tester 1", "cores": 2, "threads": 1}
SPACE = """
description: small enough to be timed in a test
family: mobilenet_v1
data: {name: digits}
parameters:
  width: [0.05, 0.1]
  resolution: [12, 16, 20]
  depth: [shallow, full]
  stem_stride: 1
objectives: {accuracy: maximize, latency_ms: minimize}
"""


def networks() -> list[Arch]:
    """36 MobileNetV1 of 4 widths, 3 resolutions and 3 kinds of blocks."""
    grid = itertools.product((0.1, 0.2, 0.3, 0.5), (32, 48, 64), ("separable", "separable_plain", "inverted_residual"))
    return [create("mobilenet_v1", width=w, resolution=r, block=b, depth="shallow", classes=10) for w, r, b in grid]


def synthetic_ms(layer: Layer) -> float:
    """A machine whose layers take a launch, and time for every mult-add, element and weight."""
    mult_adds, elements, weights, *_ = sizes(layer)
    return 0.004 + 3e-7 * mult_adds + 1e-7 * elements + 2e-7 * weights


def synthetic_times(arch: Arch, reference_ms: float = 2.0) -> NetworkTimes:
    """What timing such a machine gives, where a whole network takes 0.05 ms more than its layers."""
    layers = {layer.key: synthetic_ms(layer) / reference_ms for layer in layers_of(arch)}
    return NetworkTimes(arch, synthetic_total(arch) / reference_ms, layers)


def synthetic_total(arch: Arch) -> float:
    return sum(synthetic_ms(layer) for layer in layers_of(arch)) + 0.05


def synthetic_table(archs: list[Arch], facts: dict[str, Any] = HERE) -> LatencyTable:
    return fill("tests", facts, [synthetic_times(arch) for arch in archs], [2.0, 2.0, 2.0])


# ---------------------------------------------------------------- layers


def test_a_layer_is_what_runs_as_one_step() -> None:
    arch = create("mobilenet_v1", width=0.25, resolution=32, block="inverted_residual", se=0.5, expand=2, classes=10)
    keys = [layer.key for layer in layers_of(arch)]
    assert keys[:9] == [
        "conv 3x32x32>8x16x16 k3s2p1g1 norm relu",
        "conv1x1 8x16x16>16x16x16 k1s1p0g1 norm relu6",
        "depthwise 16x16x16>16x16x16 k3s1p1g16 norm relu6",
        "global_avg pool 16x16x16>16x1x1",
        "conv1x1 16x1x1>8x1x1 k1s1p0g1 relu",
        "conv1x1 8x1x1>16x1x1 k1s1p0g1 sigmoid",
        "scale 16x16x16>16x16x16",
        "conv1x1 16x16x16>16x16x16 k1s1p0g1 norm",
        "conv1x1 16x16x16>32x16x16 k1s1p0g1 norm relu6",
    ]
    assert keys[-2:] == ["global_avg pool 256x1x1>256x1x1", "linear 256x1x1>10x1x1"]
    assert "add 128x2x2>128x2x2" in keys
    first = next(iter(layers_of(arch)))
    assert (first.mult_adds, first.weights) == (8 * 27 * 256, 8 * 27)


def test_a_norm_at_the_start_of_the_next_block_is_a_step_of_its_own() -> None:
    """ResNetV2's stem is a convolution, and its first block begins with a norm: inference cannot fold it."""
    arch = create("resnet_v2_50", stem="cifar", resolution=32, width=0.125)
    keys = [layer.key for layer in layers_of(arch)]
    assert keys[:3] == ["conv 3x32x32>8x32x32 k3s1p1g1", "norm 8x32x32>8x32x32", "act 8x32x32>8x32x32 relu"]
    ready = folded(build(arch).eval())
    assert sum(key.startswith("norm") for key in keys) == sum(isinstance(m, nn.BatchNorm2d) for m in ready.modules())


def test_branches_and_shortcuts_are_joined_after_what_they_join() -> None:
    x = Shape(4, 6, 6)
    unit = Branches((("a", Conv(x, 2)), ("b", Pool(x, "max", 3, 1, 1))))
    root = Chain(x, (("u", Residual(unit, Conv(x, 6))), ("f", Flatten(unit.output)), ("l", Linear(Shape(216), 3))))
    assert [layer.key for layer in layers_of(root)] == [
        "conv1x1 4x6x6>2x6x6 k1s1p0g1",
        "max pool 4x6x6>4x6x6 k3s1p1g1",
        "concat 4x6x6>6x6x6",
        "conv1x1 4x6x6>6x6x6 k1s1p0g1",
        "add 4x6x6>6x6x6",
        "linear 216x1x1>3x1x1",
    ]


@pytest.mark.parametrize(
    "options", [{"block": "separable"}, {"block": "conv"}, {"block": "inverted_residual", "se": 0.25}]
)
def test_a_stepwise_pass_times_each_layer_once_in_order(options: dict[str, Any]) -> None:
    arch = create("mobilenet_v1", width=0.25, resolution=32, classes=7, **options)
    protocol, before = Protocol(), torch.get_rng_state()
    steps = Stepwise(arch.root, protocol, ClockMarks())
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        for _ in range(2):
            assert steps(random_images(arch.input, protocol)).shape == (1, 7)
    keys = [layer.key for layer in layers_of(arch)]
    assert [key for key, _, _ in steps.marks] == keys
    times_ms = steps.layer_ms()
    assert {key: len(times) for key, times in times_ms.items()} == {key: keys.count(key) for key in keys}
    assert all(ms >= 0 for times in times_ms.values() for ms in times)


def test_a_selection_covers_every_layer_without_the_networks_held_out() -> None:
    archs = networks()
    chosen = select([*archs, *archs], n_held_out=5)
    assert len(chosen.held_out) == 5
    assert not set(chosen.held_out) & set(chosen.cover)
    rest = [arch for arch in archs if arch not in chosen.held_out]
    covered = {layer.key for arch in chosen.cover for layer in layers_of(arch)}
    assert covered == {layer.key for arch in rest for layer in layers_of(arch)}
    assert chosen.n_layers == len({layer.key for arch in archs for layer in layers_of(arch)})
    assert chosen.n_uncovered == chosen.n_layers - len(covered)
    assert select(archs, n_held_out=5) == chosen
    assert len(select(archs, most=3).cover) == 3
    assert len(select(archs[:9]).held_out) == 1  # a fifth at most


# ---------------------------------------------------------------- fit and prediction


def test_a_machine_that_adds_up_is_recovered_exactly() -> None:
    archs = networks()
    chosen = select(archs, n_held_out=6)
    table = synthetic_table(list(chosen.cover))
    assert {name: round(table.calibration[name], 6) for name in FACTORS} == dict.fromkeys(FACTORS, 1.0)
    assert {name: round(table.calibration[name], 6) for name in CONSTANTS} == {
        "per_layer_ms": 0.0,
        "per_network_ms": 0.05,
    }
    judged = judge(table, chosen.held_out, [synthetic_total(arch) for arch in chosen.held_out])
    error = judged.error
    assert error is not None
    assert (error.n, round(error.spearman, 9)) == (6, 1.0)
    assert error.p90 < 1e-6
    assert [row[0] for row in judged.held_out] == [arch.id for arch in chosen.held_out]
    assert judge(table, chosen.held_out[:1], [1.0]).error is None


def test_a_kind_that_takes_longer_in_whole_networks_gets_a_factor() -> None:
    archs = networks()
    rows = [design_row((layer, synthetic_ms(layer)) for layer in layers_of(arch)) for arch in archs]
    true = dict.fromkeys(FACTORS, 1.0) | {"conv1x1": 1.5}
    measured_ms = [sum(f * v for f, v in zip(true.values(), row, strict=False)) + 0.002 * row[-2] for row in rows]
    found = calibrate(rows, measured_ms)
    assert found["conv1x1"] > 1.2
    fitted = [sum(found[n] * v for n, v in zip((*FACTORS, *CONSTANTS), row, strict=True)) for row in rows]
    assert max(abs(f / m - 1) for f, m in zip(fitted, measured_ms, strict=True)) < 0.05


def test_a_layer_that_was_not_measured_is_estimated_and_named() -> None:
    archs = networks()
    table = synthetic_table([arch for arch in archs if arch.options["resolution"] != 64])
    for arch in archs:
        prediction = table.predict(arch)
        assert prediction.n_layers == len(list(layers_of(arch)))
        assert bool(prediction.estimated) == (arch.options["resolution"] == 64)
        assert prediction.latency_ms == pytest.approx(synthetic_total(arch), rel=0.02)  # beyond what was measured too
    larger = create("mobilenet_v1", width=1.0, resolution=128, classes=10)
    assert "conv 3x128x128>32x64x64 k3s2p1g1 norm relu" in table.predict(larger).estimated
    assert table.predict(larger).latency_ms == pytest.approx(synthetic_total(larger), rel=0.05)


def test_a_kind_of_layer_that_the_table_never_saw_is_refused_by_name() -> None:
    table = synthetic_table([arch for arch in networks() if arch.options["block"] == "separable"])
    gated = create("mobilenet_v1", width=0.1, resolution=32, block="inverted_residual", se=0.5, expand=2, classes=10)
    with pytest.raises(MnetError) as caught:
        table.predict(gated)
    assert str(caught.value) == (
        "the latency table of tests has no scale layer to estimate scale 6x16x16>6x16x16 from; measure the network "
        "instead (leave --table out), or build a table of a space that has such layers"
    )


def test_spearman_is_of_ranks_and_ties_share_theirs() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.948683)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0


def test_json_keeps_a_table_whole() -> None:
    archs = networks()
    table = judge(synthetic_table(archs), archs, [synthetic_total(arch) for arch in archs])
    back = LatencyTable.from_json(json.loads(json.dumps(table.to_json())))
    assert (back.error, back.held_out) == (table.error, table.held_out)
    assert [back.predict(arch) for arch in archs] == [table.predict(arch) for arch in archs]


# ---------------------------------------------------------------- the device


def test_a_table_of_another_device_is_refused_naming_both() -> None:
    table = synthetic_table(networks()[:3])
    refuse_other_device(table, dict(HERE))
    with pytest.raises(MnetError) as caught:
        refuse_other_device(table, HERE | {"processor": "Tester 2", "threads": 4})
    assert str(caught.value) == (
        "the latency table of tests was taken with processor Tester 1, threads 1; this is processor Tester 2, threads "
        "4: build one here with mnet-search latency table --build SPACE"
    )


def test_the_fingerprint_tells_what_changes_times() -> None:
    default = fingerprint(Protocol())
    assert default == fingerprint(Protocol(repeats=7, warmup=1))
    assert default["torch"] == torch.__version__
    for other in (Protocol(threads=2), Protocol(batch=2), Protocol(dtype="bfloat16"), Protocol(fold_norm=False)):
        assert fingerprint(other) != default
    json.dumps(default)


# ---------------------------------------------------------------- the database


def test_tables_are_kept_by_space_and_device(tmp_path: Path) -> None:
    table = synthetic_table(networks()[:3])
    other = replace(table, fingerprint=HERE | {"threads": 2})
    with Store(str(tmp_path / "t.db"), create=True) as store:
        assert latency_tables.stored(store) == []
        with pytest.raises(MnetError, match=r"no latency table of 'tests' in .*t.db; it has none yet; build it: "):
            latency_tables.find(store, "tests", HERE)
        for saved in (table, other, replace(table, seconds=7.0)):
            latency_tables.save(store, saved)
        assert [(s.table.fingerprint["threads"], s.table.seconds) for s in latency_tables.stored(store)] == [
            (2, 0.0),
            (1, 7.0),
        ]
        assert latency_tables.find(store, "tests", HERE).table.seconds == 7
        with pytest.raises(MnetError, match="was taken with processor Tester 1; this is processor Tester 2: build one"):
            latency_tables.find(store, "tests", HERE | {"processor": "Tester 2"})
        with pytest.raises(
            MnetError, match=r"no latency table of 'test' .*did you mean tests\?; it has tables of: tes"
        ):
            latency_tables.find(store, "test", HERE)
        assert store.studies() == []


# ---------------------------------------------------------------- real timings


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not judged here, so few runs will do."""
    monkeypatch.setattr(layer_timing, "ROUNDS", 2)
    monkeypatch.setattr(layer_timing, "TURNS", 1)


def test_a_real_table_holds_every_layer_and_tells_large_from_small() -> None:
    grid = itertools.product((0.1, 1.0), (32, 128), (3, 5))
    archs = [create("mobilenet_v1", width=w, resolution=r, kernel=k, depth="shallow") for w, r, k in grid]
    seen: list[tuple[int, int]] = []
    chosen = select(archs, n_held_out=1)
    protocol = Protocol(repeats=5, warmup=1, until_stable=False)
    table = build_table("real", chosen, protocol, lambda done, total: seen.append((done, total)))
    assert set(table.layers) == {layer.key for arch in archs for layer in layers_of(arch)}  # held-out ones as well
    assert seen == [(i + 1, 8) for i in range(8)]
    assert table.fingerprint == fingerprint(protocol)
    assert all(value >= 0 for value in table.calibration.values())
    assert min(row[0] for row in table.layers.values()) > 0
    predictions = [table.predict(arch) for arch in archs]
    assert all(not p.estimated for p in predictions)
    assert predictions[-1].latency_ms > 3 * predictions[0].latency_ms  # 300 times the mult-adds


def test_the_commands_build_list_and_predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(SPACE)

    def call(*arguments: str, code: int = 0) -> str:
        assert run_command(["latency", *arguments]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    built = json.loads(call("table", "--build", "tiny.yaml", "--repeats", "5", "--json", "-q"))
    assert (built["space"], built["error"]["n"]) == ("tiny", 2)
    assert {"median", "p90", "spearman"} <= set(built["error"])
    assert "tiny" in call("table")
    assert [row["layers"] for row in json.loads(call("table", "--json"))] == [built["layers"]]

    model = ("mobilenet_v1", "-s", "width=0.1", "-s", "resolution=16", "-s", "stem_stride=1")
    model += ("-s", "in_channels=1", "-s", "classes=10")
    predicted = json.loads(call(*model, "--table", "tiny.yaml", "--json"))
    assert predicted["latency_ms"] > 0
    assert predicted["estimated"] == []
    text = call(*model, "-s", "width=0.2", "--table", "tiny")
    assert "layers are not in the table and were taken from their nearest neighbours: conv 1x16x16>6x16x16" in text
    refused = call(*model, "--table", "tiny", "--threads", "2", code=2)
    assert "the latency table of tiny was taken with threads 1; this is threads 2: build one here" in refused
    assert "did you mean tiny?" in call(*model, "--table", "tinny", code=2)

    both = json.loads(call(*model, "--batch", "1", "--batch", "3", "--repeats", "4", "--json"))["measurements"]
    assert [(m["batch"], m["n"]) for m in both] == [(1, 4), (3, 4)]
    assert all(m["good"] == (m["drift"] <= m["drift_bound"]) for m in both)
    assert "reference" in call(*model, "--repeats", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml", "--build", "tiny.yaml"], "--build tiny.yaml: write mnet-search latency table --build tiny.yaml"),
        (["table", "--table", "tiny"], "--table tiny: it predicts a network; write mnet-search latency MODEL --table"),
        (
            ["mobilenet_v1", "--protocol", "resnet"],
            "unknown protocol 'resnet'; did you mean resnet_v2? (known: default",
        ),
        (["mobilenet_v1", "-s", "resolution=1000000"], "batch 1 of 3x1000000x1000000 does not fit into the memory of"),
        (["mobilenet_v1", "-s", "resolution=100000", "--batch", "9"], "batch 9 of 3x100000x100000 does not fit into"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["latency", *arguments]) == 2
    assert message in capsys.readouterr().err
