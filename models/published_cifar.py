"""What people printed of the networks that they built by hand on CIFAR-10 at 32x32: accuracy, recipe, params.

Figures stand as their authors printed them, and None where none was printed. To add a system, write it in SYSTEMS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mnet_search.models.arch import Arch
from mnet_search.models.families import create


@dataclass(frozen=True)
class System:
    """A network as somebody trained it on CIFAR-10. `accuracy_percent` is of the kind that `kind` says in words;
    `trainable` are its params as printed, `params` those with the statistics of batch norm.
    """

    system: str
    family: str
    structure: str
    recipe: str
    accuracy_percent: float | None = None
    kind: str = "none printed"
    params: int | None = None
    trainable: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def arch(self) -> Arch:
        """The network, described here."""
        return create(self.family, resolution=32, classes=10, in_channels=3, **self.options)


_KERAS = "Adam 1e-3, batch 32"
_TWICE = "batch 128, 40,000 images to train and 10,000 to validate, 10 + 10 epochs"
_UNSAID = "not said of which images"

SYSTEMS = (
    System(
        "MobileNetV1 (PyTorch)",
        "mobilenet_v1",
        "conv 3x3/2 32, 13 depthwise separable blocks to 1024 channels, global pool, linear",
        "Adam 1e-4, batch 256, 100 epochs",
        *(71.99, "best validation of 100 epochs (the 97th)"),
    ),
    System(
        "MobileNetV1 full (Keras)",
        "mobilenet_v1",
        "conv 3x3/2 32, 13 depthwise separable blocks to 1024 channels, global pool, linear",
        _TWICE,
        *(66.76, "best validation of 10 + 10 epochs"),
    ),
    System(
        "MobileNetV1 shallow (Keras)",
        "mobilenet_v1",
        "the same without the five middle blocks of 512 channels",
        _TWICE,
        *(67.42, "best validation of 10 + 10 epochs"),
        options={"depth": "shallow"},
    ),
    System(
        "MobileNet-CIFAR (TensorFlow)",
        "mobilenet_cifar",
        "conv 3x3/2 32, four depthwise separable pairs to 256 channels (BN in the last two), max-pool 2, linear",
        "Adam 1e-3, batch 100, 20,000 steps, L2 0.004 on the linear layer",
        kind="none printed (curves only)",
    ),
    System(
        "Baseline",
        "baseline",
        "conv 5x5 6, BN, ReLU, max-pool 2, dropout, dense 128, dropout, dense 10",
        _KERAS,
        *(62.09, _UNSAID),
        *(198_506, 198_494),
    ),
    System(
        "LeNet5",
        "lenet5",
        "conv 5x5 6, max-pool 2, conv 5x5 16, max-pool 2, dense 120, 84, 10, with sigmoids",
        _KERAS,
        *(54.11, _UNSAID),
        *(62_006, None),
    ),
    System(
        "AlexNet8",
        "alexnet8",
        "conv 3x3 96, 256, 384, 384, 256, three max-pools 3/2, dense 2048 twice, dense 10",
        _KERAS,
        params=9_639_178,
        trainable=9_638_474,
    ),
    System(
        "VGG16",
        "vgg16",
        "13 conv 3x3 with BN in five groups of 64 to 512, dropout after each pool, dense 512 twice, dense 10",
        _KERAS,
    ),
    System(
        "Inception10",
        "inception10",
        "conv 3x3 16, two groups of two inception units, global pool, dense 10",
        _KERAS,
    ),
    System(
        "ResNet18 (CIFAR)",
        "resnet18",
        "conv 3x3 64, basic blocks 2, 2, 2, 2 of 64 to 512, global pool, dense 10",
        _KERAS,
        trainable=11_173_962,
    ),
)
