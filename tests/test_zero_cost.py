"""Scores of untrained networks: each against its definition, all of them under one set of rules, and the command that
says what they are worth on a real study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.costs import Costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search import zero_cost
from mnet_search.search.data import DataOptions, load, normalise, resize
from mnet_search.search.show_scores import finished_networks, rank, training_batch
from mnet_search.search.zero_cost import BAR, SCORES, Scored, grad_norm, jacob_cov, score, score_features, synflow

from processes import TINY, call, search
from small_networks import SMALL, every_block

NONE = Costs()
SIX = TINY.replace("n_trials: 4", "n_trials: 6").replace("epochs: 2", "epochs: 1")


def pictures(count: int = 16, channels: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


def network(width: float = 0.25, **options: Any) -> Arch:
    return create("mobilenet_v1", width=width, resolution=32, classes=10, **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real, finished study of six networks."""
    folder = tmp_path_factory.mktemp("study")
    search(folder, SIX)
    return folder


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


# ---------------------------------------------------------------- every score


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_finite_repeatable_and_leaves_all_as_it_was(name: str) -> None:
    arch, (images, labels) = create("staged", **every_block(), classes=10), pictures(size=16)
    module = build(arch)
    batch = normalise(images, (0.5,) * 3, (0.25,) * 3)
    before, random_state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    values = [SCORES[name](module, batch, labels, Costs(mult_adds=1000)) for _ in range(2)]
    assert values[0] == values[1]
    assert math.isfinite(values[0])
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert score(arch, [name], images, labels, 3) == score(arch, [name], images, labels, 3)
    changed = score(arch, [name], images, labels, 3) != score(arch, [name], images, labels, 4)
    assert changed == (name != BAR)


@pytest.mark.parametrize("family", SMALL)
def test_every_family_has_every_score(family: str) -> None:
    arch = create(family, **{**SMALL[family], "classes": 10, "in_channels": 3})
    found = score(arch, list(SCORES), *pictures(4))
    assert all(math.isfinite(value) for value in found.values()), found


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet", "densenet121", "vit_b_16"])
@pytest.mark.slow
def test_networks_of_torchvision_have_scores(name: str) -> None:
    found = score(create(f"torchvision:{name}", resolution=64, classes=10), list(SCORES), *pictures(4))
    assert list(found) == list(SCORES)
    assert math.isfinite(found["grad_norm"])


# ---------------------------------------------------------------- synflow


def test_synflow_of_two_linear_layers_is_twice_their_path_norm() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.ReLU6(), nn.Linear(5, 3, bias=False))
    first, second = (module[i].weight.detach().double().abs() for i in (1, 3))
    expected = 2 * (second @ first).sum()
    found = synflow(module, torch.zeros(7, 3, 2, 2), torch.zeros(7), NONE)
    assert found == pytest.approx(math.log(expected), abs=1e-12)
    with torch.no_grad():
        module[1].weight *= -1000  # signs do not matter, and nothing is cut off at 6
    assert synflow(module, torch.zeros(7, 3, 2, 2), torch.zeros(7), NONE) == pytest.approx(
        math.log(1000 * expected), abs=1e-6
    )


def test_synflow_with_biases_by_hand() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 1))
    w1, b1, w2 = (p.detach().double().abs() for p in (module[1].weight, module[1].bias, module[2].weight))
    inner = w1.sum(1) + b1
    expected = (w1 * w2.T).sum() + (w2[0] * inner).sum()  # sums of w dR/dw of the first layer and of the second
    assert synflow(module, torch.zeros(1, 1, 2, 2), torch.zeros(1), NONE) == pytest.approx(math.log(expected))


def test_synflow_takes_batch_norms_as_they_start_and_relu6_as_linear() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=0.0), nn.ReLU6(), nn.Conv2d(4, 2, 1))
    nn.init.zeros_(module[3].bias)
    module[1].running_mean.fill_(1e3)
    module[1].running_var.fill_(1e6)
    weights = [module[i].weight.detach().double().abs().flatten(1) for i in (0, 3)]
    expected = 2 * 9 * (weights[1] @ weights[0]).sum()  # 9 pixels, each a network of its own
    assert synflow(module, torch.zeros(1, 3, 3, 3), torch.zeros(1), NONE) == pytest.approx(math.log(expected))


@pytest.mark.parametrize("family", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small"])
def test_a_wider_network_has_a_larger_synflow(family: str) -> None:
    images, labels = pictures(2)
    found = [
        score(create(family, width=width, resolution=32, classes=10), ["synflow"], images, labels)["synflow"]
        for width in (0.25, 0.5, 1.0)
    ]
    assert found == sorted(found)
    assert len(set(found)) == 3


def test_a_deep_wide_network_does_not_overflow() -> None:
    arch = create("resnet_v2_200", width=0.5, resolution=32, classes=10)
    assert 0 < score(arch, ["synflow"], *pictures(2))["synflow"] < 709  # the logarithm of the largest float64


# ---------------------------------------------------------------- grad_norm and jacob_cov


def test_grad_norm_against_autograd() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6)
    module.train()
    gradients = torch.autograd.grad(F.cross_entropy(module(images), labels), list(module.parameters()))
    expected = torch.cat([g.flatten() for g in gradients]).norm().item()
    assert grad_norm(module, images, labels, NONE) == pytest.approx(expected, rel=1e-5)


def test_grad_norm_without_dropout() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    dropped = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), plain[1])
    images, labels = torch.randn(4, 3, 2, 2), torch.arange(4)
    assert grad_norm(dropped, images, labels, NONE) == grad_norm(plain, images, labels, NONE)


class Gains(nn.Module):
    """Logits whose jacobian for image i is row i of a table: (N, C, H, W) -> (N, 1)."""

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) * self.rows).sum(1, keepdim=True)


def test_jacob_cov_is_higher_where_jacobians_are_less_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 48, generator=generator)
    noise = torch.randn(8, 48, generator=generator)
    images, labels = torch.randn(8, 3, 4, 4, generator=generator), torch.zeros(8)
    found = [jacob_cov(Gains(common + share * noise), images, labels, NONE) for share in (0.01, 0.1, 1.0, 100.0)]
    assert found == sorted(found)
    # The definition, by NumPy's own correlation.
    eigenvalues = np.linalg.eigvalsh(np.corrcoef((common + noise).double().numpy()))
    expected = -np.sum(np.log(eigenvalues + 1e-5) + 1 / (eigenvalues + 1e-5))
    assert found[2] == pytest.approx(expected, rel=1e-4)
    assert max(found) < -8  # log(v) + 1/v is least, 1, where every eigenvalue is 1


def test_what_is_not_finite_is_nan() -> None:
    assert math.isnan(jacob_cov(Gains(torch.zeros(4, 12)), torch.ones(4, 3, 2, 2), torch.zeros(4), NONE))
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    nn.init.zeros_(module[1].weight)
    assert math.isnan(synflow(module, torch.ones(4, 3, 2, 2), torch.zeros(4), NONE))
    assert math.isnan(SCORES[BAR](module, torch.ones(1), torch.ones(1), NONE))


def infinite(module: nn.Module, images: Tensor, labels: Tensor, costs: Costs) -> float:
    return math.inf


# ---------------------------------------------------------------- of a network


def test_images_come_as_in_training() -> None:
    data = load(DataOptions(name="digits"))
    arch = create("mobilenet_v1", width=0.1, resolution=16, stem_stride=1, in_channels=1, classes=10)
    images, labels = training_batch(data, 16)
    batch = normalise(resize(images, 16), data.mean, data.std)
    expected = grad_norm(build(arch, 2), batch, labels, NONE)
    assert score(arch, ["grad_norm"], images, labels, 2, statistics=(data.mean, data.std)) == {"grad_norm": expected}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = score(arch, ["grad_norm"], images, labels, 2, statistics=(data.mean, data.std))
        assert (again["grad_norm"], torch.get_num_threads()) == (expected, 2)
    finally:
        torch.set_num_threads(threads)


def test_the_training_batch_holds_every_class_in_proportion() -> None:
    data = load(DataOptions(name="digits"))
    images, labels = training_batch(data, 8)
    assert images.dtype == torch.uint8
    counts = torch.bincount(labels)
    assert (len(images), int(counts.min()), int(counts.max())) == (64, 6, 7)
    assert torch.equal(training_batch(data, 8)[0], images)


def test_a_score_of_the_users_own_and_one_that_is_infinite() -> None:
    found = score(network(), [BAR, "test_zero_cost:infinite"], *pictures(2))
    assert found[BAR] == math.log(costs(network()).mult_adds)
    assert math.isnan(found["test_zero_cost:infinite"])


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (pictures(1), "scores need a batch of 2 images or more with as many labels, got 1 and 1; give a larger batch"),
        (pictures(4, channels=1), "takes 3 channels and knows 10 classes, but the images have 1 channels and labels"),
        ((pictures(4)[0], torch.arange(4) + 7), "but the images have 3 channels and labels up to 10; make it for this"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch: tuple[Tensor, Tensor], says: str) -> None:
    with pytest.raises(MnetError, match=says):
        score(network(), [BAR], *batch)


def test_an_unknown_score_is_answered_with_those_known() -> None:
    with pytest.raises(MnetError, match=r"unknown score 'synflo'; did you mean synflow\? \(known: synflow, grad_norm"):
        score(network(), ["synflo"], *pictures(2))


# ---------------------------------------------------------------- features of many networks


def test_features_are_kept_and_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, (images, labels) = tmp_path / "scores.json", pictures(4)
    archs = {"a": network(), "b": network(0.5), "a again": network()}
    scored: list[str] = []
    real = zero_cost.score

    def counted(arch: Arch, *rest: Any, **more: Any) -> dict[str, float]:
        if len(scored) == 1 and limit:
            raise KeyboardInterrupt
        scored.append(arch.id)
        return real(arch, *rest, **more)

    monkeypatch.setattr(zero_cost, "score", counted)
    limit = True
    with pytest.raises(KeyboardInterrupt):
        score_features(archs, ["synflow", BAR], images, labels, 0, cache)
    limit = False
    found = score_features(archs, ["synflow", BAR], images, labels, 0, cache)
    assert scored == [archs["a"].id, archs["b"].id]
    assert found == {key: real(arch, ["synflow", BAR], images, labels) for key, arch in archs.items()}
    assert score_features(archs, [BAR, "synflow"], images, labels, 0, cache) == found
    assert len(scored) == 2
    assert score_features(archs, ["synflow"], images, labels, 1, cache)["a"] != {"synflow": found["a"]["synflow"]}
    assert len(scored) == 4  # another seed is another score, and the first is still known
    assert score_features(archs, ["synflow", BAR], images, labels, 0, cache) == found
    assert len(scored) == 4


def test_a_cache_keeps_nan_survives_damage_and_names_a_place_that_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, batch, name = tmp_path / "scores.json", pictures(2), "test_zero_cost:infinite"
    for _ in range(2):
        assert math.isnan(score_features({"a": network()}, [name], *batch, 0, cache)["a"][name])
    assert "NaN" not in cache.read_text()
    cache.write_text("[1, 2")
    assert score_features({"a": network()}, [BAR], *batch, 0, cache)["a"][BAR] > 0
    assert "not readable as scores" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(MnetError, match="scores cannot be kept there"):
        score_features({"a": network()}, [BAR], *batch, 0, tmp_path / "file" / "scores.json")


# ---------------------------------------------------------------- ranks


def ranked(values: Mapping[str, list[float]], accuracy: list[float]) -> dict[str, Any]:
    rows = [dict(zip(values, (Scored(v, 0.5) for v in row), strict=True)) for row in zip(*values.values(), strict=True)]
    return {found.score: found for found in rank(list(values), rows, np.array(accuracy))}


def test_a_score_is_judged_by_the_size_of_its_correlation() -> None:
    accuracy = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    values = {
        "same": [1, 2, 3, 4, 5, 6],
        "reverse": [6, 5, 4, 3, 2, 1],
        "worse": [3, 1, 6, 2, 5, 4],
        "lost": [math.nan, math.nan, 3, 4, 5, 6],
        "constant": [1, 1, 1, 1, 1, 1],
        BAR: [1, 3, 2, 4, 5, 6],
    }
    found = ranked(values, accuracy)
    assert [round(found[name].rho, 3) for name in ("same", "reverse", BAR)] == [1.0, -1.0, 0.943]
    assert [found[name].beats for name in values] == [True, True, False, True, None, None]
    assert found["worse"].verdict.startswith("does not beat log_mult_adds (.94); higher in ")
    assert found["reverse"].verdict.startswith("beats log_mult_adds (.94); higher in ")
    assert found[BAR].verdict == "the bar to beat"
    assert found[BAR].low <= found[BAR].rho <= found[BAR].high
    assert found["lost"].not_finite == 2
    assert math.isnan(found["constant"].rho)
    assert found["constant"].verdict.startswith("cannot rank: every network has the same score")
    tied = ranked({"reverse": [-v for v in values[BAR]], BAR: values[BAR]}, accuracy)["reverse"]
    assert (tied.beats, tied.share) == (False, 0.0)
    without = ranked({"same": values["same"], BAR: values["constant"]}, accuracy)
    assert (without["same"].verdict, without["same"].beats) == ("no bar: log_mult_adds cannot rank", None)
    assert all(math.isnan(one.rho) for one in ranked(values, [0.5] * 6).values())


def trials(accuracies: list[float], networks: list[str] | None = None) -> pd.DataFrame:
    names = networks or [str(i) for i in range(len(accuracies))]
    rows = {"state": "finished", "arch_id": names, "accuracy": accuracies, "family": "f"}
    return pd.DataFrame({**rows, "options": [{} for _ in names]})


def test_repeats_of_a_network_are_one_row() -> None:
    found = finished_networks(trials([0.1, 0.2, 0.3, 0.4, 0.5, 0.3], ["a", "b", "c", "d", "e", "a"]), "s")
    assert found["arch_id"].tolist() == ["a", "b", "c", "d", "e"]
    assert found.loc[0, ["accuracy", "trials"]].tolist() == [pytest.approx(0.2), 2]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (trials([math.nan] * 6), "study 's' has no accuracy in any of its 6 finished trials, so there is nothing to"),
        (trials([0.1, 0.2, 0.3]), "study 's' has 3 finished networks, 2 fewer than the 5 .* resume s --n-trials 5"),
        (trials([]), "study 's' has 0 finished networks, 5 fewer"),
    ],
)
def test_too_little_to_rank_is_said(frame: pd.DataFrame, says: str) -> None:
    with pytest.raises(MnetError, match=says):
        finished_networks(frame, "s")


# ---------------------------------------------------------------- the command


def test_the_command_judges_every_score_on_a_real_study(study: Path) -> None:
    done = call(study, "scores", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["score"] for row in found["scores"]] == list(SCORES)
    assert {row["n"] for row in found["scores"]} == {6}
    assert (len(found["networks"]), found["images"]) == (6, 64)
    values = [row["scores"]["synflow"] for row in found["networks"]]
    accuracy = [row["accuracy"] for row in found["networks"]]
    expected = pd.Series(values).corr(pd.Series(accuracy), method="spearman")
    assert found["scores"][0]["rho"] == pytest.approx(expected)
    assert found["scores"][0]["seconds"] > 0
    assert json.loads(call(study, "scores", "tiny", "--json").stdout)["networks"] == found["networks"]


def test_the_command_prints_the_bar_beside_what_was_asked(study: Path) -> None:
    done = call(study, "scores", "tiny", "--score", "jacob_cov")
    assert done.returncode == 0, done.stderr
    assert "scores of 6 networks on 64 training images" in done.stdout
    assert "beat" in next(line for line in done.stdout.splitlines() if line.startswith("jacob_cov"))
    assert "the bar to beat" in next(line for line in done.stdout.splitlines() if line.startswith(BAR))
    assert "grad_norm" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("tiny", "--score", "synflo"), "unknown score 'synflo'; did you mean synflow?"), (("other",), "'other'")],
)
def test_the_command_refuses_in_one_line(study: Path, arguments: tuple[str, ...], says: str) -> None:
    done = call(study, "scores", *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_pareto_sampler_learns_from_scores_and_keeps_them(tmp_path: Path) -> None:
    text = TINY.replace("sampler: grid", "sampler: pareto, scores: [synflow, grad_norm]").replace(
        "epochs: 2", "epochs: 1"
    )
    assert search(tmp_path, text, n_trials=6).n_new == 6  # the first five are drawn
    kept = tmp_path / "runs" / "tiny" / "scores.json"
    (networks,) = json.loads(kept.read_text()).values()
    assert len(networks) == 8
    assert all(set(row) == {"synflow", "grad_norm"} for row in networks.values())
    written = kept.stat().st_mtime_ns
    assert search(tmp_path, text, n_trials=7).n_new == 1
    assert kept.stat().st_mtime_ns == written  # read, not made again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("sampler: grid", "sampler: tpe, scores: [synflow]"), "sampler 'tpe' does not learn from scores; use pareto"),
        (("sampler: grid", "sampler: pareto, scores: [synflo]"), "unknown score 'synflo'; did you mean synflow?"),
        (
            ("width: [0.1, 0.12, 0.15, 0.2]", "width: {min: 0.1, max: 0.4, step: 0.0001}"),
            "for 2,000 codes at most; this space has 6,002: leave search.scores out",
        ),
    ],
)
def test_scores_that_cannot_be_used_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = TINY.replace(*change)
    if "scores" not in text:
        text = text.replace("sampler: grid", "sampler: pareto, scores: [synflow]")
    with pytest.raises(MnetError) as caught:
        search(tmp_path, text, n_trials=1)
    assert message in str(caught.value)
