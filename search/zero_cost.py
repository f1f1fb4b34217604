"""Scores of networks that were never trained, from their starting weights and one batch: which of them rank networks as
training does is for `mnet-search scores` to say, for each study anew.

A score is a function of a module, a batch as the network sees it, its labels and its costs. It works on a copy, so that
the module stays as it was, and gives the same number for the same input. `log_mult_adds` looks at the costs alone: a
score that does not rank better than that is not worth its time.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.checkpoints import write_atomically
from mnet_search.models.complexity import costs as costs_of
from mnet_search.models.costs import Costs
from mnet_search.models.factory import build
from mnet_search.models.tables import lookup
from mnet_search.search.pixels import normalise, resize

__all__ = ["BAR", "SCORES", "Scored", "Statistics", "measure_scores", "score", "score_features"]

log = logging.getLogger(__name__)

ScoreFunction: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Costs], float]
Statistics: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, as fractions 0..1 of white: `Data.mean` and `Data.std`."""

EIGENVALUE_SHIFT = 1e-5  # Mellor et al.'s k
SAVE_EVERY_S = 5.0  # between two writes of a cache
MEANING = 1  # raised when a score comes to mean something else, so that no cache mixes the two


@dataclass(frozen=True)
class Scored:
    """A score, nan where it is not finite, and the seconds that it took, without building the network."""

    value: float
    seconds: float


# ---------------------------------------------------------------- the scores


def synflow(module: nn.Module, images: Tensor, labels: Tensor, costs: Costs) -> float:
    """Natural logarithm of the synaptic flow, the sum of |weight * dR/dweight| over the weights of convolutions and
    linear layers, where R is the sum of the outputs for one image of ones; no unit (Tanaka et al., arXiv 2006.05467,
    equation 2 and algorithm 1; their code leaves batch norms and biases out of the sum as well).

    images (N, C, H, W), for their shape alone. All parameters by absolute value, in float64. The network is made linear
    in its input: batch norms normalise by mean 0 and variance 1, and activations that are the identity on large
    positive numbers are the identity, else relu6 would cut off what grows from layer to layer; gates keep theirs.
    """
    linear = _linear_copy(module)
    ones = torch.ones(1, *images.shape[1:], dtype=torch.float64, device=images.device)
    linear(ones).sum().backward()
    weights = [part.weight for part in linear.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    flow = sum(float((weight.detach() * weight.grad).abs().sum()) for weight in weights if weight.grad is not None)
    return math.log(flow) if flow > 0 else math.nan


def grad_norm(module: nn.Module, images: Tensor, labels: Tensor, costs: Costs) -> float:
    """Euclidean norm of the gradient of the batch's mean cross entropy over all parameters, in nats per unit of weight
    (Abdelfattah et al., arXiv 2101.08134, section 3.2; their code adds up the norms of the layers).

    images (N, C, H, W), labels (N,). Batch norms take the batch's own statistics; dropout is off.
    """
    trained = _training_copy(module)
    F.cross_entropy(trained(images), labels).backward()
    squares = [
        parameter.grad.double().square().sum() for parameter in trained.parameters() if parameter.grad is not None
    ]
    return math.sqrt(float(sum(squares)))


def jacob_cov(module: nn.Module, images: Tensor, labels: Tensor, costs: Costs) -> float:
    """How differently a network reacts to different images: minus the sum of log(v + k) + 1 / (v + k) over the
    eigenvalues v of the correlation matrix (N, N) of the images' jacobians, k = 1e-5; no unit, higher where they are
    less alike (Mellor et al., arXiv 2006.04647 version 1, equation 3; later versions have another score).

    images (N, C, H, W); a jacobian is the gradient (C*H*W,) of the sum of all logits in an image. Batch norms take the
    batch's own statistics; dropout is off. Depends on N.
    """
    inputs = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_training_copy(module)(inputs).sum(), inputs)
    rows = gradient.flatten(1).double()
    rows = rows - rows.mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    if not bool(rows.isfinite().all()):  # an image that the network does not react to correlates with nothing
        return math.nan
    shifted = torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0) + EIGENVALUE_SHIFT
    return -float((shifted.log() + 1 / shifted).sum())


def log_mult_adds(module: nn.Module, images: Tensor, labels: Tensor, costs: Costs) -> float:
    """Natural logarithm of the exact multiply-adds at batch 1: needs neither module nor images."""
    return math.log(costs.mult_adds) if costs.mult_adds > 0 else math.nan


def _linear_copy(module: nn.Module) -> nn.Module:
    """A copy in float64 with absolute parameters, whose outputs are linear in the image but for gates."""
    copied = copy.deepcopy(module).double().eval()
    for part in list(copied.modules()):
        if isinstance(part, _BatchNorm):
            part.reset_running_stats()
        for label, child in part.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.SiLU):
                setattr(part, label, nn.Identity())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.abs_()
            parameter.grad = None
    return copied.requires_grad_()


def _training_copy(module: nn.Module) -> nn.Module:
    """A copy as it is trained, but for what is random."""
    copied = copy.deepcopy(module).train().requires_grad_()
    copied.zero_grad()
    for part in copied.modules():
        if isinstance(part, _DropoutNd | StochasticDepth):
            part.eval()
    return copied


# ---------------------------------------------------------------- of a described network


def score(
    arch: Arch,
    names: Sequence[str],
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    *,
    statistics: Statistics | None = None,
) -> dict[str, float]:
    """Every score in `names` of a network that starts from `seed`; nan where one is not finite.

    `images` uint8 (N, C, H, W) of any size are brought to the network's resolution and normalised as in training,
    by the data's `statistics` or else by the batch's own; `labels` int64 (N,). One torch thread. Raises MnetError for
    an unknown score and for a batch that does not fit the network.
    """
    scored = measure_scores(arch, names, images, labels, seed, statistics=statistics)
    return {name: found.value for name, found in scored.items()}


def measure_scores(
    arch: Arch,
    names: Sequence[str],
    images: Tensor,
    labels: Tensor,
    seed: int = 0,
    *,
    statistics: Statistics | None = None,
) -> dict[str, Scored]:
    """As `score`, with the time that each score took."""
    functions: dict[str, ScoreFunction] = {name: lookup(SCORES, name, "score") for name in names}
    _check_batch(arch, images, labels)
    with _one_thread():
        mean, std = _batch_statistics(images) if statistics is None else statistics
        batch = normalise(resize(images, arch.input.height), mean, std)
        module, costs = build(arch, seed), costs_of(arch)
        return {name: _timed(function, module, batch, labels, costs) for name, function in functions.items()}


def score_features(
    space_archs: Mapping[str, Arch],
    names: Sequence[str],
    images: Tensor,
    labels: Tensor,
    seed: int,
    cache: Path,
    *,
    statistics: Statistics | None = None,
) -> dict[str, dict[str, float]]:
    """`score` of many networks, under the keys that they were given.

    What is known is kept in the JSON file `cache` under the batch, the seed and the networks' ids, and written every
    few seconds, so that a run that was interrupted goes on, and equal networks are scored once. Raises MnetError where
    the file cannot be written.
    """
    statistics = _batch_statistics(images) if statistics is None else statistics
    everything = _read_cache(cache)
    known = everything.setdefault(_digest(images, labels, seed, statistics), {})
    saved, changed = time.monotonic(), False
    try:
        for arch in space_archs.values():
            missing = [name for name in names if name not in known.get(arch.id, {})]
            if not missing:
                continue
            found = score(arch, missing, images, labels, seed, statistics=statistics)
            known[arch.id] = known.get(arch.id, {}) | found
            changed = True
            if time.monotonic() - saved > SAVE_EVERY_S:
                _write_cache(cache, everything)
                saved, changed = time.monotonic(), False
    finally:
        if changed:
            _write_cache(cache, everything)
    return {key: {name: known[arch.id][name] for name in names} for key, arch in space_archs.items()}


def _timed(function: ScoreFunction, module: nn.Module, images: Tensor, labels: Tensor, costs: Costs) -> Scored:
    begun = time.perf_counter()
    value = float(function(module, images, labels, costs))
    return Scored(value if math.isfinite(value) else math.nan, time.perf_counter() - begun)


def _check_batch(arch: Arch, images: Tensor, labels: Tensor) -> None:
    """Raises MnetError where the batch cannot be scored."""
    if len(images) != len(labels) or len(images) < 2:
        raise MnetError(
            f"scores need a batch of 2 images or more with as many labels, got {len(images)} and {len(labels)}; give a "
            "larger batch"
        )
    highest = int(labels.max())
    if images.shape[1] != arch.input.channels or highest >= arch.classes:
        raise MnetError(
            f"network {arch.id} takes {arch.input.channels} channels and knows {arch.classes} classes, but the images "
            f"have {images.shape[1]} channels and labels up to {highest}; make it for this data"
        )


def _batch_statistics(images: Tensor) -> Statistics:
    """Of uint8 (N, C, H, W); a channel of one value has no deviation to divide by."""
    levels = images.transpose(0, 1).flatten(1).double() / 255
    deviations = levels.std(1, correction=0).clamp_min(1 / 255)
    return tuple(levels.mean(1).tolist()), tuple(deviations.tolist())


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """More threads would sum in another order, and so give other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the cache

Cache: TypeAlias = dict[str, dict[str, dict[str, float]]]
"""The digest of a batch and a seed -> arch id -> name of a score -> its value."""


def _digest(images: Tensor, labels: Tensor, seed: int, statistics: Statistics) -> str:
    """What scores rest on beside the network."""
    facts: list[Any] = [MEANING, seed, tuple(images.shape), statistics]
    sha256 = hashlib.sha256(json.dumps(facts).encode())
    for tensor in (images.cpu().contiguous(memory_format=torch.contiguous_format), labels.cpu().contiguous()):
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()[:16]


def _read_cache(path: Path) -> Cache:
    """What is there; nothing, with a warning, where it is no cache of ours."""
    try:
        content = json.loads(path.read_bytes())
        return {
            digest: {
                arch_id: {name: math.nan if value is None else float(value) for name, value in row.items()}
                for arch_id, row in networks.items()
            }
            for digest, networks in content.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: not readable as scores (%s); they are worked out anew", path, error)
        return {}


def _write_cache(path: Path, everything: Cache) -> None:
    content = {
        digest: {
            arch_id: {name: None if math.isnan(value) else value for name, value in row.items()}
            for arch_id, row in networks.items()
        }
        for digest, networks in everything.items()
    }
    try:
        write_atomically(path, json.dumps(content, allow_nan=False).encode())
    except OSError as error:
        raise MnetError(f"{path}: scores cannot be kept there ({error.strerror}); name another file") from None


SCORES: dict[str, ScoreFunction] = {
    "synflow": synflow,
    "grad_norm": grad_norm,
    "jacob_cov": jacob_cov,
    "log_mult_adds": log_mult_adds,
}
BAR = "log_mult_adds"  # what every other score has to beat
