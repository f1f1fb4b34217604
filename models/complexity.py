"""Costs of a network in closed form, folded over its description. No torch, no forward pass.

mult-adds are multiply-adds of convolutions and linear layers at batch 1, as the MobileNet papers count them (no batch
norm, activation, pooling or bias); params are trainable ones (a batch norm has 2 per channel; its running statistics
are not counted); activations are the output elements of convolutions and linear layers (Radosavovic et al., arXiv
2003.13678, section 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mnet_search.models.arch import Arch, Conv, Linear, Node, Norm, Shape, walk


@dataclass(frozen=True)
class Costs:
    """Trainable parameters, multiply-adds at batch 1, and output elements of convolutions and linear layers."""

    params: int = 0
    mult_adds: int = 0
    activations: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.params + other.params, self.mult_adds + other.mult_adds, self.activations + other.activations)


@dataclass(frozen=True)
class LayerCosts:
    """One primitive of the network: its state-dict name, what it is, its shapes and costs."""

    name: str
    kind: str
    input: Shape
    output: Shape
    costs: Costs


def primitive_costs(node: Node) -> Costs:
    """Costs of one primitive; zero for those without weights."""
    match node:
        case Conv():
            weights = node.channels * node.kernel**2 * (node.input.channels // node.groups)
            pixels = node.output.height * node.output.width
            return Costs(weights + node.channels * node.bias, weights * pixels, node.output.elements)
        case Linear():
            weights = node.input.elements * node.features
            return Costs(weights + node.features * node.bias, weights, node.features)
        case Norm():
            return Costs(params=2 * node.input.channels)
    return Costs()


def costs(network: Arch | Node) -> Costs:
    """Total costs of a network or a part of one."""
    total = Costs()
    for _, node in walk(network.root if isinstance(network, Arch) else network):
        total += primitive_costs(node)
    return total


def layers(network: Arch | Node) -> Iterator[LayerCosts]:
    """Every primitive with its costs, in the order in which data meets it."""
    for name, node in walk(network.root if isinstance(network, Arch) else network):
        yield LayerCosts(name, _kind(node), node.input, node.output, primitive_costs(node))


def _kind(node: Node) -> str:
    if isinstance(node, Conv):
        depthwise = node.groups > 1 and node.groups == node.input.channels
        return f"{'depthwise' if depthwise else 'conv'} {node.kernel}x{node.kernel}" + (
            f"/{node.stride}" if node.stride > 1 else ""
        )
    return type(node).__name__.lower()
