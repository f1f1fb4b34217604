"""Every family leaves torch by way of ONNX: what onnxruntime computes is what torch computes.

An export takes torch seconds, most of them for its own bookkeeping of each operator (measured: 40 to 100 ms), so the
networks are shallow: the stages of their own table, with a block or two in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mnet_search.models.arch import ACTIVATIONS, Act, walk
from mnet_search.models.factory import build
from mnet_search.models.families import create

from small_networks import SMALL, every_block

# The ResNetV2s are one function over four tables, and keep 2 blocks in the third stage, where the tables differ: each
# is still built by its own row.
DEPTHS = {
    "mobilenet_v1": 0.2,
    "mobilenet_v2": 0.3,
    "mobilenet_v3_small": 0.3,
    "mobilenet_v3_large": 0.3,
    "staged": 0.3,
    "resnet18": 0.5,
    "resnet_v2_50": 0.1,
    "resnet_v2_101": 0.05,
    "resnet_v2_152": 0.05,
    "resnet_v2_200": 0.05,
}
# Families that share their function with another one: a batch axis of a fixed size, which is nearly twice as quick.
FIXED_BATCH = ("mobilenet_v3_large", "vgg16_imagenet", "resnet_v2_101", "resnet_v2_152", "resnet_v2_200")
TRACED_BATCH, OTHER_BATCH = 3, 5


@pytest.fixture(scope="module", autouse=True)
def one_registry() -> Iterator[None]:
    """torch reads the source of its 500 ONNX functions anew at each export, which takes a second: here once."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError, AttributeError):  # torch's own, which may move: then it is only slower
            registry = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
            patch.setattr(registry, "from_torchlib", staticmethod(cache(registry.from_torchlib)))
        yield


def lively(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The module in inference mode with batch norms that matter: statistics of two batches in training, and scales and
    shifts of their own.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # an average over both batches, whatever the family's momentum is
            norm.reset_running_stats()
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        for _ in range(2):
            module.train()(torch.randn(16, *shape))
    assert all(norm.running_mean.abs().max() > 1e-3 for norm in norms)
    return module.eval().requires_grad_(False)


def exported(module: nn.Module, example: Tensor, *, any_batch: bool) -> onnxruntime.InferenceSession:
    """The module in onnxruntime, by torch's exporter as it is by default."""
    shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
    program = torch.onnx.export(module, (example,), dynamic_shapes=shapes, verbose=False)
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = program.model_proto.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def assert_exports(module: nn.Module, shape: tuple[int, ...], *, any_batch: bool = True) -> None:
    """onnxruntime's scores are torch's, at each batch size."""
    session = exported(module, torch.randn(TRACED_BATCH, *shape), any_batch=any_batch)
    (given,) = session.get_inputs()
    assert given.shape == ["batch" if any_batch else TRACED_BATCH, *shape]
    for batch in (TRACED_BATCH, OTHER_BATCH) if any_batch else (TRACED_BATCH,):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected = module(x).numpy()
        (found,) = session.run(None, {given.name: x.numpy()})
        # Also by what different images differ in: else the scores of a network that sees nothing would do.
        spread = float(expected.std(axis=0).mean())
        assert found.shape == (batch, 10)
        assert np.abs(found - expected).max() < min(1e-4, 1e-2 * spread)


def out_of_place(module: nn.Module) -> nn.Module:
    """The same function with activations that write to a new tensor: ONNX has no others, and what torch does to get rid
    of them doubles the time of an export. `test_every_block_and_activation` exports them as they are built.
    """
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = False
    return module


@pytest.mark.parametrize("family", sorted(SMALL))
def test_every_family(family: str) -> None:
    torch.manual_seed(0)
    depth = {"depth": DEPTHS[family]} if family in DEPTHS else {}
    arch = create(family, **{"classes": 10, **SMALL[family], **depth})
    assert_exports(out_of_place(lively(build(arch), arch.input)), arch.input, any_batch=family not in FIXED_BATCH)


def test_every_block_and_activation() -> None:
    torch.manual_seed(0)
    arch = create("staged", **every_block())
    assert {node.kind for _, node in walk(arch.root) if isinstance(node, Act)} == set(ACTIVATIONS)
    assert_exports(lively(build(arch), arch.input), arch.input, any_batch=False)


def test_a_network_of_torchvision() -> None:
    torch.manual_seed(0)
    arch = create("torchvision:squeezenet1_1", classes=10, resolution=64)
    assert_exports(lively(build(arch), arch.input), arch.input)
