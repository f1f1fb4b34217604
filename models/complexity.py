"""Costs of a network in closed form, folded over its description. No torch, no forward pass.

mult-adds are multiply-adds of convolutions and linear layers at batch 1, as the MobileNet papers count them (no batch
norm, activation, pooling or bias); params are trainable ones (a batch norm has 2 per channel; its running statistics
are not counted); activations are the output elements of convolutions and linear layers (Radosavovic et al., arXiv
2003.13678, section 4, who count convolutions alone).

Peak activations are the most elements of feature maps that exist at one moment of inference at batch 1, layer after
layer: a convolution, linear layer or pooling needs its input and its output; batch norm, activation, dropout and
flatten write over their input, and an addition or a gate over one of its inputs, unless that input is needed again;
branches are concatenated by copy. What a shortcut or a gate keeps for later counts as long as it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
    kept,
    walk,
)
from mnet_search.models.costs import FLOAT32_BYTES, Costs, LayerCosts

# The kinds of layers that hold weights, as table 2 of the MobileNetV1 paper names them.
KINDS = ("1x1 conv", "depthwise conv", "full conv", "linear")


class Fold(NamedTuple):
    """What is kept of a node so that its parents need not look below it. `peak_kept` is the peak where the input must
    outlive the node; a receptive field grows by `growth` pixels of the input, whose `jump` pixels one step of the
    output covers; `ends` says that the node sees the whole map.
    """

    params: int
    statistics: int
    mult_adds: int
    activations: int
    peak: int
    peak_kept: int
    growth: int
    jump: int
    ends: bool
    output: int


def costs(network: Arch | Node) -> Costs:
    """Total costs of a network or a part of one."""
    root = network.root if isinstance(network, Arch) else network
    if isinstance(root, External):
        return _external(root)
    f = fold(root)
    weight_bytes = FLOAT32_BYTES * (f.params + f.statistics)
    return Costs(f.params, f.mult_adds, f.activations, f.peak, weight_bytes, 1 + f.growth)


def layers(network: Arch | Node) -> Iterator[LayerCosts]:
    """Every primitive with its costs, in the order in which data meets it."""
    root = network.root if isinstance(network, Arch) else network
    if isinstance(root, External):
        from mnet_search.models.traced import external_layers

        yield from external_layers(root)
        return
    for name, node in walk(root):
        weights = _weights(node)
        yield LayerCosts(name, name.partition(".")[0], _kind(node), node.input, node.output, costs(node), weights)


def depth(network: Arch | Node) -> int:
    """How many layers with weights (convolutions, linear) a network has; 0 for one that is described elsewhere."""
    return kept(network.root if isinstance(network, Arch) else network, "_depth", _depth)


def _depth(node: Node) -> int:
    match node:
        case Chain(children=children) | Branches(children=children):
            return sum(depth(child) for _, child in children)
        case Residual(body=body, shortcut=shortcut):
            return depth(body) + (depth(shortcut) if shortcut is not None else 0)
        case Scale(gate=gate):
            return depth(gate)
    return int(isinstance(node, Conv | Linear))


def shares(rows: Sequence[LayerCosts]) -> dict[str, tuple[float, float]]:
    """Share of the mult-adds and of the weights (biases and batch norms aside) that each of KINDS holds, as in table 2
    of the MobileNetV1 paper. Both add up to 1.
    """
    mult_adds, weights = sum(r.costs.mult_adds for r in rows) or 1, sum(r.weights for r in rows) or 1
    found = {}
    for kind in KINDS:
        mine = [r for r in rows if r.weights and kind_of_weights(r.kind) == kind]
        found[kind] = (sum(r.costs.mult_adds for r in mine) / mult_adds, sum(r.weights for r in mine) / weights)
    return found


def kind_of_weights(kind: str) -> str:
    """Which of KINDS a layer's kind belongs to."""
    if kind.startswith("depthwise"):
        return "depthwise conv"
    if kind.startswith("conv 1x1"):
        return "1x1 conv"
    return "linear" if kind == "linear" else "full conv"


def _external(root: External) -> Costs:
    from mnet_search.models.traced import external_costs

    return external_costs(root)


# ---------------------------------------------------------------- the fold


def fold(node: Node) -> Fold:
    """The costs of a node and all below it."""
    return kept(node, "_fold", _fold)


def _fold(node: Node) -> Fold:
    match node:
        case Chain(children=children):
            return _fold_chain(node, [fold(child) for _, child in children])
        case Residual():
            return _fold_residual(node)
        case Scale():
            return _fold_scale(node)
        case Branches(children=children):
            return _fold_branches(node.input.elements, [fold(child) for _, child in children])
    return _fold_primitive(node)


def _fold_primitive(node: Node) -> Fold:
    before, after = node.input.elements, node.output.elements
    in_place = isinstance(node, Norm | Act | Dropout | Flatten)
    peak, kept = (before, 2 * before) if in_place else (before + after, before + after)
    match node:
        case Conv():
            weights = _weights(node)
            mult_adds = weights * node.output.height * node.output.width
            params = weights + node.channels * node.bias
            return Fold(params, 0, mult_adds, after, peak, kept, node.kernel - 1, node.stride, False, after)
        case Linear():
            weights = _weights(node)
            params = weights + node.features * node.bias
            return Fold(params, 0, weights, after, peak, kept, 0, 1, True, after)
        case Norm():
            both = 2 * node.input.channels
            return Fold(both, both, 0, 0, peak, kept, 0, 1, False, after)
        case Pool(kind="global_avg"):
            return Fold(0, 0, 0, 0, peak, kept, 0, 1, True, after)
        case Pool():
            return Fold(0, 0, 0, 0, peak, kept, node.kernel - 1, node.stride, False, after)
        case Act() | Dropout():
            return Fold(0, 0, 0, 0, peak, kept, 0, 1, False, after)
        case Flatten():
            return Fold(0, 0, 0, 0, peak, kept, 0, 1, True, after)
    raise TypeError(f"not a node of the description: {node!r}")


def _weights(node: Node) -> int:
    """Weights of a convolution or linear layer, without bias."""
    match node:
        case Conv():
            return node.channels * node.kernel**2 * (node.input.channels // node.groups)
        case Linear():
            return node.input.elements * node.features
    return 0


def _fold_chain(node: Chain, parts: list[Fold]) -> Fold:
    params = statistics = mult_adds = activations = peak = kept = growth = held = 0
    output, jump, ends = node.input.elements, 1, False
    before = output
    for own in parts:  # unpacked, since every network of a space comes through here
        p, s, m, a, part_peak, part_kept, part_growth, part_jump, part_ends, output = own
        params += p
        statistics += s
        mult_adds += m
        activations += a
        if part_peak > peak:
            peak = part_peak
        kept = max(kept, held + part_peak) if held else part_kept
        held = before
        if not ends:
            growth += jump * part_growth
            jump *= part_jump
            ends = part_ends
    return Fold(params, statistics, mult_adds, activations, peak, kept, growth, jump, ends, output)


def _fold_residual(node: Residual) -> Fold:
    body = fold(node.body)
    x, out = node.input.elements, body.output
    if node.shortcut is None:
        peak = max(body.peak_kept, x + out)
        return body._replace(peak=peak, peak_kept=peak)
    other = fold(node.shortcut)
    return Fold(
        body.params + other.params,
        body.statistics + other.statistics,
        body.mult_adds + other.mult_adds,
        body.activations + other.activations,
        max(body.peak_kept, out + other.peak, 2 * out),
        max(body.peak_kept, out + other.peak_kept, x + 2 * out),
        max(body.growth, other.growth),
        body.jump,
        False,
        out,
    )


def _fold_scale(node: Scale) -> Fold:
    """A gate sees the whole map, but by one number a channel: the receptive field is left as it was."""
    gate = fold(node.gate)
    x = node.input.elements
    peak, kept = max(gate.peak_kept, x + gate.output), max(gate.peak_kept, 2 * x + gate.output)
    return gate._replace(peak=peak, peak_kept=kept, growth=0, jump=1, ends=False, output=x)


def _fold_branches(x: int, parts: list[Fold]) -> Fold:
    held = peak = kept = 0
    for index, f in enumerate(parts):
        last = index == len(parts) - 1
        peak = max(peak, held + (f.peak if last else f.peak_kept))
        kept = max(kept, held + f.peak_kept)
        held += f.output
    return Fold(
        sum(f.params for f in parts),
        sum(f.statistics for f in parts),
        sum(f.mult_adds for f in parts),
        sum(f.activations for f in parts),
        max(peak, 2 * held),
        max(kept, x + 2 * held),
        max(f.growth for f in parts),
        parts[0].jump,
        False,
        held,
    )


def _kind(node: Node) -> str:
    if isinstance(node, Conv):
        depthwise = node.groups > 1 and node.groups == node.input.channels
        return f"{'depthwise' if depthwise else 'conv'} {node.kernel}x{node.kernel}" + (
            f"/{node.stride}" if node.stride > 1 else ""
        )
    return type(node).__name__.lower()
