"""What the costs and the factory owe their users in speed, by factors that no busy machine reaches; benchmarks/ has the
figures. Both sides run in turn, and the quickest of each counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.spaces.space import load_space

MACRO = Path(__file__).parent.parent / "spaces" / "macro.yaml"


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# fvcore's import and its trace use torch.jit, which torch has deprecated
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_costs_are_100_times_as_quick_as_fvcore() -> None:
    from fvcore.nn import FlopCountAnalysis

    space = load_space(MACRO).for_data(classes=10, in_channels=3)
    codes = list(islice(space.codes(), 300))
    ours, theirs = [], []
    for code in codes[::100]:
        arch = space.arch(code)
        module, image = build(arch).eval(), torch.zeros(1, *arch.input)
        counter = FlopCountAnalysis(module, image)
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        theirs.append(seconds(counter.total))
        ours.append(seconds(lambda: [costs(space.arch(code)) for code in codes]) / len(codes))
    assert min(theirs) > 100 * min(ours)


def test_building_takes_less_than_3_times_what_torchvision_takes() -> None:
    ours, theirs = [], []
    for _ in range(4):
        ours.append(seconds(lambda: build(create("mobilenet_v2"))))
        theirs.append(seconds(lambda: torchvision.models.mobilenet_v2(weights=None)))
    assert min(ours) < 3 * min(theirs)
