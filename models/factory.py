"""Maps the description of a network to torch modules. State-dict names are the labels of the tree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnet_search.models.arch import (
    Act,
    Arch,
    Branches,
    Chain,
    Conv,
    Dropout,
    External,
    Flatten,
    Linear,
    Node,
    Norm,
    Pool,
    Residual,
    Scale,
)

ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hswish": lambda: nn.Hardswish(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "sigmoid": nn.Sigmoid,
    "hsigmoid": nn.Hardsigmoid,
}


LARGEST_SMALL_MAP = 16  # pixels of a map up to which a 1x1 convolution trains as a matrix product


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that trains fast on tiny maps.

    On a CPU the weight gradient of a depthwise convolution falls back to a slow general product when its map is of a
    few pixels (measured: 6 to 29 ms a layer instead of 0.2 to 4, in the last stages at 32 px). There, in training, the
    same sum is taken another way: a single pixel meets only the filter's centre; other small maps are padded first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/stride, W/stride)."""
        kernel, pad = int(self.kernel_size[0]), int(self.padding[0])  # never "same": the factory gives numbers
        if not self.training or x.device.type != "cpu" or min(x.shape[-2:]) > 3 or pad != kernel // 2:
            return super().forward(x)
        if x.shape[-2:] == (1, 1) and self.bias is None:
            return x * self.weight[:, 0, kernel // 2, kernel // 2].view(1, -1, 1, 1)
        padded = functional.pad(x, (pad, pad, pad, pad))
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, 1, self.groups)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that trains fast on small maps: there, on a CPU, it is taken as the matrix product that it is.

    The convolution reorders its weights for every step, which on maps of few pixels is most of its time (forward
    and backward of 128 images, one thread of an AMD EPYC, torch 2.15: 17 to 47 ms a layer at 1x1 and 2x2, not 8 to 17).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        small = x.shape[-2] * x.shape[-1] <= LARGEST_SMALL_MAP
        if not (self.training and small and x.device.type == "cpu" and x.dtype == self.weight.dtype):
            return super().forward(x)
        rows = functional.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return rows.permute(0, 3, 1, 2)


class ResidualModule(nn.Sequential):
    """shortcut(x) + body(x); the body's children are this module's own, so that a residual adds no level to state-dict
    names.
    """

    def __init__(self, body: OrderedDict[str, nn.Module], shortcut: nn.Module | None):
        super().__init__(body)
        self._body = list(body)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        out = x
        for name in self._body:
            out = self._modules[name](out)
        return out + (x if self.shortcut is None else self.shortcut(x))


class ScaleModule(nn.Sequential):
    """x * gate(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x * super().forward(x)


class BranchesModule(nn.ModuleDict):
    """Concatenates its children's outputs along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, sum of the children's channels, H', W')."""
        return torch.cat([child(x) for child in self.values()], dim=1)


def build(arch: Arch, seed: int = 0) -> nn.Module:
    """The module of a network, initialised from `seed` alone. (N, C, H, W) float -> (N, classes).

    torch's global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        module = to_module(arch.root)
        if not isinstance(arch.root, External):  # torchvision's networks start as torchvision starts them
            initialise(module, arch.init)
    return module


def to_module(node: Node) -> nn.Module:
    """The module of a node and all below it, with torch's default initialisation."""
    match node:
        case Chain(children=children):
            return nn.Sequential(_modules(children))
        case Branches(children=children):
            return BranchesModule(_modules(children))
        case Residual(body=body, shortcut=shortcut):
            inner = _modules(body.children) if isinstance(body, Chain) else OrderedDict(body=to_module(body))
            return ResidualModule(inner, to_module(shortcut) if shortcut is not None else None)
        case Scale(gate=Chain(children=children)):
            return ScaleModule(_modules(children))
        case Conv():
            size, groups = node.kernel, node.groups
            return _kind(node)(
                node.input.channels, node.channels, size, node.stride, node.padding, groups=groups, bias=node.bias
            )
        case Norm():
            return nn.BatchNorm2d(node.input.channels, node.eps, node.momentum)
        case Act():
            return ACTIVATION_MODULES[node.kind]()
        case Pool(kind="global_avg"):
            return nn.AdaptiveAvgPool2d(1)
        case Pool(kind="max"):
            return nn.MaxPool2d(node.kernel, node.stride, node.padding)
        case Pool():
            return nn.AvgPool2d(node.kernel, node.stride, node.padding)
        case Flatten():
            return nn.Flatten()
        case Linear():
            return nn.Linear(node.input.channels, node.features, bias=node.bias)
        case Dropout():
            return nn.Dropout(node.rate)
        case External():
            from mnet_search.models.traced import build_external

            return build_external(node)
    raise TypeError(f"the factory has no module for {node!r}")


def _kind(node: Conv) -> type[nn.Conv2d]:
    if node.groups == node.input.channels == node.channels > 1:
        return DepthwiseConv2d
    plain = node.kernel == 1 and node.stride == 1 and node.padding == 0 and node.groups == 1
    return PointwiseConv2d if plain else nn.Conv2d


def _modules(children: tuple[tuple[str, Node], ...]) -> OrderedDict[str, nn.Module]:
    return OrderedDict((label, to_module(child)) for label, child in children)


def initialise(module: nn.Module, init: str) -> None:
    """Set the starting weights of every convolution and linear layer by a rule of INITIALISATIONS; biases are 0 and
    batch norms scale 1, shift 0, whatever the rule (`torch` keeps torch's own biases).
    """
    rule = INITIALISATIONS[init]
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            rule(part)


def _he_fan_in(part: nn.Conv2d | nn.Linear) -> None:
    """Convolutions: He normal over the fan-in, which is right for depthwise filters too, whose fan-out torch
    overestimates by their number (He et al., arXiv 1502.01852, section 2.2). Linear: normal with sd 0.01.
    """
    _he(part, "fan_in")


def _he_fan_out(part: nn.Conv2d | nn.Linear) -> None:
    """Convolutions: He normal over the fan-out; linear: normal with sd 0.01 (torchvision's MobileNetV2, MobileNetV3
    and VGG; its ResNets keep torch's own for the linear layer).
    """
    _he(part, "fan_out")


def _he(part: nn.Conv2d | nn.Linear, mode: Literal["fan_in", "fan_out"]) -> None:
    if isinstance(part, nn.Linear):
        nn.init.normal_(part.weight, 0.0, 0.01)
    else:
        nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")
    _zero_bias(part)


def _glorot(part: nn.Conv2d | nn.Linear) -> None:
    """Uniform by fan-in and fan-out (Glorot and Bengio 2010, equation 16): the default of Keras' layers."""
    nn.init.xavier_uniform_(part.weight)
    _zero_bias(part)


def _zero_bias(part: nn.Conv2d | nn.Linear) -> None:
    if part.bias is not None:
        nn.init.zeros_(part.bias)


def _torch(part: nn.Conv2d | nn.Linear) -> None:
    """What torch's constructors do: uniform between plus and minus 1 / sqrt(fan-in), biases included."""
    part.reset_parameters()


INITIALISATIONS: dict[str, Callable[[nn.Conv2d | nn.Linear], None]] = {
    "he_fan_in": _he_fan_in,
    "he_fan_out": _he_fan_out,
    "glorot": _glorot,
    "torch": _torch,
}
