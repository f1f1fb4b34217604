"""Every family at a size at which it can be run in a moment, and one network with every block: for the tests that go
over all of them.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

from mnet_search.models.arch import ACTIVATIONS
from mnet_search.models.blocks import BLOCKS, options_of

SMALL: dict[str, dict[str, Any]] = {
    "mobilenet_v1": {"resolution": 32, "width": 0.25},
    "mobilenet_v2": {"resolution": 32, "width": 0.35},
    "mobilenet_v3_small": {"resolution": 32, "width": 0.5},
    "mobilenet_v3_large": {"resolution": 32, "width": 0.35},
    "staged": {"width": 0.25},
    "mobilenet_cifar": {"width": 0.5},
    "baseline": {},
    "lenet5": {},
    "alexnet8": {"width": 0.25, "hidden": 64},
    "vgg16": {"width": 0.125, "hidden": 32},
    "vgg16_imagenet": {"width": 0.125, "hidden": 32, "resolution": 64},
    "inception10": {"width": 0.5},
    "resnet18": {"width": 0.125},
    "resnet_v2_50": {"resolution": 64, "width": 0.125},
    "resnet_v2_101": {"resolution": 64, "width": 0.125},
    "resnet_v2_152": {"resolution": 64, "width": 0.0625},
    "resnet_v2_200": {"resolution": 64, "width": 0.0625},
}


def every_block() -> dict[str, Any]:
    """Options of `staged`: a stage of two for each block, the first changing the channels and the second not; the
    activations in turn.
    """
    options: dict[str, Any] = {"resolution": 16, "stem_channels": 8, "head_channels": 16}
    acts = cycle(ACTIVATIONS)
    for number, (name, block) in enumerate(sorted(BLOCKS.items()), 1):
        of_stage = {"block": name, "channels": 8 + 8 * (number % 2), "depth": 2}
        of_stage["stride"] = 2 if name in ("bottleneck_v2", "residual") else 1
        if "act" in options_of(block):
            of_stage["act"] = next(acts)
        options |= {f"stages.{number}.{option}": value for option, value in of_stage.items()}
    return options
