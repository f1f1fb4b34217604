"""Teachers: trained networks whose probabilities a smaller one learns (distillation; Hinton et al., arXiv 1503.02531).

A teacher is a checkpoint that this toolkit wrote (the file, or the folder of a run), which knows how to be built again,
or torchvision:NAME with the weights that torchvision publishes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnet_search.models.arch import MnetError
from mnet_search.models.checkpoints import BEST, load_checkpoint
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.data import Facts

__all__ = ["Teacher", "load_teacher", "teacher_path"]

TORCHVISION = "torchvision:"


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network, the resolution and normalisation that it was trained with, and a digest of its weights."""

    module: nn.Module
    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str

    def reader(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """A function from a student's inputs, float (N, C, H, W) normalised by `mean` and `std`, to (N, classes)."""
        module = self.module.requires_grad_(False).eval()
        module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
        theirs, own = (_per_channel(pair, device) for pair in ((mean, std), (self.mean, self.std)))
        scale, shift = theirs[1] / own[1], (theirs[0] - own[0]) / own[1]

        @torch.no_grad()
        def logits(images: Tensor) -> Tensor:
            images = images * scale + shift
            if images.shape[-1] != self.resolution:
                size = (self.resolution, self.resolution)
                images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
            found: Tensor = module(images.contiguous(memory_format=torch.channels_last))
            return found

        return logits


def _per_channel(pair: tuple[tuple[float, ...], ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(values, device=device).view(1, -1, 1, 1) for values in pair)


def load_teacher(name: str, facts: Facts) -> Teacher:
    """The teacher `name` for images with these facts. Raises MnetError where it is not to be had or knows other
    classes.
    """
    return _from_torchvision(name, facts) if name.startswith(TORCHVISION) else _from_checkpoint(name, facts)


def teacher_path(name: str) -> Path | None:
    """The checkpoint that `name` means, absolute; None for torchvision's. Raises MnetError where there is none."""
    if name.startswith(TORCHVISION):
        return None
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        path = next((path / file for file in (BEST, "last.pt") if (path / file).exists()), path / BEST)
    if not path.is_file():
        raise MnetError(
            f"training.teacher: no checkpoint at {str(path)!r}; give a .pt file of a trained network, the folder of "
            "its run, or torchvision:NAME"
        )
    return path


def _from_checkpoint(name: str, facts: Facts) -> Teacher:
    path = teacher_path(name)
    assert path is not None
    stored = load_checkpoint(path)
    about = stored.network
    if about is None:
        raise MnetError(
            f"training.teacher: {str(path)!r} does not say how its network is built, for an older mnet-search wrote "
            "it; train it again"
        )
    _same_classes(name, tuple(about["class_names"]), facts)
    arch = create(about["family"], **about["options"])
    if arch.input.channels != facts.channels:
        raise MnetError(
            f"training.teacher: {name!r} takes images of {arch.input.channels} channels, the data's have "
            f"{facts.channels}; give one that was trained on such images"
        )
    module = build(arch)
    module.load_state_dict(stored.module)
    digest = _digest(stored.module)
    return Teacher(module, arch.input.height, tuple(about["mean"]), tuple(about["std"]), digest)


def _digest(weights: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    for name, value in weights.items():
        sha256.update(name.encode())
        sha256.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _from_torchvision(name: str, facts: Facts) -> Teacher:
    from torchvision import models

    short = name.removeprefix(TORCHVISION)
    try:
        weights: Any = models.get_model_weights(short).DEFAULT
    except (ValueError, AttributeError) as error:
        raise MnetError(f"training.teacher: {name!r}: {error}; give a classifier of torchvision's") from None
    _same_classes(name, tuple(weights.meta["categories"]), facts)
    if facts.channels != 3:
        raise MnetError(f"training.teacher: {name!r} takes colour images, the data's have {facts.channels} channels")
    try:
        module = models.get_model(short, weights=weights)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MnetError(
            f"training.teacher: the weights of {name!r} could not be downloaded: {reason}; check the network, or give "
            "a checkpoint"
        ) from None
    preset = weights.transforms()
    return Teacher(module, preset.crop_size[0], tuple(preset.mean), tuple(preset.std), str(weights))


def _same_classes(name: str, known: tuple[str, ...], facts: Facts) -> None:
    if len(known) == facts.classes and (known == facts.class_names or name.startswith(TORCHVISION)):
        return
    theirs, ours = (f"{len(names)} ({', '.join(names[:3])}, ...)" for names in (known, facts.class_names))
    raise MnetError(
        f"training.teacher: {name!r} knows other classes, {theirs}, than {facts.name} has, {ours}; give one that was "
        "trained on these"
    )
