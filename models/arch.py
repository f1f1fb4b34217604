"""The description of a network: a frozen tree of primitive layers whose shapes are known.

Everything that speaks about a network reads this tree: `factory` maps it to modules, `complexity` folds it to costs,
later readers time, draw and export it. A primitive knows its input shape, so a tree that exists is a tree whose shapes
fit.

A *layer* is a function from the shape that comes in to the node that takes it (`Shape -> Node`); `chain` threads the
shape through a row of layers. The keyword under which a layer is given is its label, and the labels on the way down are
the module's state-dict names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, Protocol

Activation = Literal["relu", "relu6", "hswish", "silu", "sigmoid", "hsigmoid"]
ACTIVATIONS: tuple[str, ...] = ("relu", "relu6", "hswish", "silu", "sigmoid", "hsigmoid")


class MnetError(Exception):
    """An expected failure: its text is one sentence for the user, its exit code what the command line returns."""

    exit_code: int = 2


class OptionError(MnetError):
    """An option of a family or block that cannot be: names the option, the value seen and what is allowed."""

    def __init__(self, option: str, value: object, allowed: str):
        super().__init__(f"{option}={value!r} is not possible: {allowed}")
        self.option = option


class UnknownOptionError(OptionError):
    """An option that the family or block does not have."""

    def __init__(self, option: str, owner: str, known: str):
        MnetError.__init__(self, f"{owner} has no option {option!r}{known}")
        self.option = option


class TooSmallError(MnetError):
    """A layer that would shrink its input below one pixel."""


@dataclass(frozen=True)
class Shape:
    """A feature map without its batch axis: (channels, height, width). A vector is (channels, 1, 1)."""

    channels: int
    height: int = 1
    width: int = 1

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"

    @property
    def elements(self) -> int:
        return self.channels * self.height * self.width


class Node(Protocol):
    """What every primitive and combinator is: something with an input and an output shape."""

    @property
    def input(self) -> Shape: ...
    @property
    def output(self) -> Shape: ...


Layer = Callable[[Shape], Node]


def _slide(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _window(kind: str, shape: Shape, channels: int, kernel: int, stride: int, padding: int) -> Shape:
    """Output of a sliding window over `shape`. A stride over a single pixel is refused: it would halve nothing and
    still be called a stride.
    """
    side = min(shape.height, shape.width)
    if (stride > 1 and side < 2) or _slide(side, kernel, stride, padding) < 1:
        raise TooSmallError(
            f"{kind} {kernel}x{kernel} stride {stride} "
            f"cannot be applied to a map of {shape.height}x{shape.width} pixels"
        )
    return Shape(channels, _slide(shape.height, kernel, stride, padding), _slide(shape.width, kernel, stride, padding))


@dataclass(frozen=True)
class Conv:
    """2-D convolution with a square kernel. groups == input channels makes it depthwise."""

    input: Shape
    channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = False

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise OptionError("channels", self.channels, "a layer needs at least 1 channel")
        if self.input.channels % self.groups or self.channels % self.groups:
            raise OptionError(
                "groups",
                self.groups,
                f"must divide both {self.input.channels} input and {self.channels} output channels",
            )

    @cached_property
    def output(self) -> Shape:
        return _window("conv", self.input, self.channels, self.kernel, self.stride, self.padding)


@dataclass(frozen=True)
class Norm:
    """Batch normalisation over the channels, with a learned scale and shift."""

    input: Shape

    @property
    def output(self) -> Shape:
        return self.input


@dataclass(frozen=True)
class Act:
    """A pointwise activation."""

    input: Shape
    kind: str = "relu"

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise OptionError("act", self.kind, f"known activations: {', '.join(ACTIVATIONS)}")

    @property
    def output(self) -> Shape:
        return self.input


@dataclass(frozen=True)
class Pool:
    """Max or average pooling with a window, or `global_avg` over the whole map."""

    input: Shape
    kind: Literal["max", "avg", "global_avg"] = "global_avg"
    kernel: int = 0
    stride: int = 1
    padding: int = 0

    @cached_property
    def output(self) -> Shape:
        if self.kind == "global_avg":
            return Shape(self.input.channels)
        return _window(f"{self.kind} pool", self.input, self.input.channels, self.kernel, self.stride, self.padding)


@dataclass(frozen=True)
class Flatten:
    """(C, H, W) -> (C*H*W, 1, 1)."""

    input: Shape

    @property
    def output(self) -> Shape:
        return Shape(self.input.elements)


@dataclass(frozen=True)
class Linear:
    """A fully connected layer over a flattened input."""

    input: Shape
    features: int
    bias: bool = True

    @property
    def output(self) -> Shape:
        return Shape(self.features)


@dataclass(frozen=True)
class Dropout:
    """Zeroes a share of the inputs while training."""

    input: Shape
    rate: float

    @property
    def output(self) -> Shape:
        return self.input


@dataclass(frozen=True)
class Chain:
    """One node after another; `children` are (label, node) pairs."""

    input: Shape
    children: tuple[tuple[str, Node], ...]

    @property
    def output(self) -> Shape:
        return self.children[-1][1].output if self.children else self.input


@dataclass(frozen=True)
class Residual:
    """shortcut(x) + body(x); no shortcut node means the identity."""

    body: Node
    shortcut: Node | None = None

    def __post_init__(self) -> None:
        other = self.shortcut.output if self.shortcut else self.body.input
        if other != self.body.output:
            raise MnetError(f"a residual needs equal shapes on both sides, got {other} and {self.body.output}")

    @property
    def input(self) -> Shape:
        return self.body.input

    @property
    def output(self) -> Shape:
        return self.body.output


@dataclass(frozen=True)
class Scale:
    """x * gate(x), where the gate gives one number per channel (squeeze-and-excitation)."""

    gate: Node

    @property
    def input(self) -> Shape:
        return self.gate.input

    @property
    def output(self) -> Shape:
        return self.gate.input


@dataclass(frozen=True)
class Branches:
    """Several nodes over one input, concatenated along the channels."""

    children: tuple[tuple[str, Node], ...]

    @property
    def input(self) -> Shape:
        return self.children[0][1].input

    @property
    def output(self) -> Shape:
        first = self.children[0][1].output
        return Shape(sum(node.output.channels for _, node in self.children), first.height, first.width)


# ---------------------------------------------------------------- layers: functions from a shape to a node


def chain(shape: Shape, **layers: Layer | None) -> Chain:
    """Thread `shape` through the layers in order; a layer that is None is left out."""
    children: list[tuple[str, Node]] = []
    for label, layer in layers.items():
        if layer is not None:
            node = layer(children[-1][1].output if children else shape)
            children.append((label, node))
    return Chain(shape, tuple(children))


def residual(body: Node, shortcut: Node | None = None) -> Residual:
    return Residual(body, shortcut)


def conv(
    channels: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False, padding: int | None = None
) -> Layer:
    """A convolution that keeps the size at stride 1 unless `padding` says otherwise."""
    pad = kernel // 2 if padding is None else padding
    return lambda x: Conv(x, channels, kernel, stride, pad, groups, bias)


def conv_norm(channels: int, kernel: int = 1, stride: int = 1) -> Layer:
    """conv, norm."""
    return partial(chain, conv=conv(channels, kernel, stride), norm=Norm)


def conv_norm_act(channels: int, kernel: int = 1, stride: int = 1, *, act: str = "relu") -> Layer:
    """conv, norm, act."""
    return partial(chain, conv=conv(channels, kernel, stride), norm=Norm, act=activation(act))


def depthwise(kernel: int = 3, stride: int = 1, *, act: str | None = "relu", norm: bool = True) -> Layer:
    """One kernel x kernel filter per channel, then norm and act unless told otherwise."""
    return lambda x: chain(
        x,
        conv=conv(x.channels, kernel, stride, groups=x.channels),
        norm=Norm if norm else None,
        act=activation(act) if act else None,
    )


def activation(kind: str) -> Layer:
    return lambda x: Act(x, kind)


def dropout(rate: float) -> Layer | None:
    """None where the rate is 0, so that it leaves no trace in the network's identity."""
    return (lambda x: Dropout(x, rate)) if rate else None


def linear(features: int, *, bias: bool = True) -> Layer:
    return lambda x: Linear(x, features, bias)


def squeeze_excite(ratio: float, channels: int | None = None) -> Layer:
    """Global pool, 1x1 to ratio * channels, ReLU, 1x1 back, sigmoid; multiplies its input (Hu et al., arXiv 1709.01507,
    section 3).

    `channels` is the width that the ratio refers to (the block's input in EfficientNet's manner); default: the width of
    the map itself.
    """

    def layer(x: Shape) -> Scale:
        squeezed = max(1, int((channels or x.channels) * ratio))
        gate = chain(
            x,
            pool=Pool,
            reduce=conv(squeezed, bias=True),
            act=activation("relu"),
            expand=conv(x.channels, bias=True),
            gate=activation("sigmoid"),
        )
        return Scale(gate)

    return layer


# ---------------------------------------------------------------- walking and identity


def walk(node: Node, label: str = "") -> Iterator[tuple[str, Node]]:
    """Every primitive below `node` with its full dotted label, in the order in which data meets it."""
    match node:
        case Chain(children=children) | Branches(children=children):
            for name, child in children:
                yield from walk(child, f"{label}.{name}" if label else name)
        case Residual(body=body, shortcut=shortcut):
            yield from walk(body, label)
            if shortcut is not None:
                yield from walk(shortcut, f"{label}.shortcut" if label else "shortcut")
        case Scale(gate=gate):
            yield from walk(gate, label)
        case _:
            yield label, node


def structure(node: Node) -> list[Any]:
    """The canonical form: what is computed, without labels and without the way it was put together. JSON-able.

    Chains dissolve into the row around them, so networks that compute the same thing layer by layer have one form.
    """
    match node:
        case Chain(children=children):
            return [part for _, child in children for part in structure(child)]
        case Branches(children=children):
            return [["branches", *(structure(child) for _, child in children)]]
        case Residual(body=body, shortcut=shortcut):
            return [["residual", structure(body), structure(shortcut) if shortcut is not None else []]]
        case Scale(gate=gate):
            return [["scale", structure(gate)]]
        case Conv():
            return [
                [
                    "conv",
                    node.input.channels,
                    node.channels,
                    node.kernel,
                    node.stride,
                    node.padding,
                    node.groups,
                    node.bias,
                ]
            ]
        case Norm():
            return [["norm"]]
        case Act():
            return [["act", node.kind]]
        case Pool():
            return [["pool", node.kind, node.kernel, node.stride, node.padding]]
        case Linear():
            return [["linear", node.input.channels, node.features, node.bias]]
        case Dropout():
            return [["dropout", node.rate]]
        case Flatten():
            return [["flatten"]]
    raise TypeError(f"not a node of the description: {node!r}")


@dataclass(frozen=True, eq=False)
class Arch:
    """One fully resolved network: where it came from (family and options) and what it is (the tree).

    Two Archs are equal when their networks are, however they were described.
    """

    family: str
    options: Mapping[str, Any] = field(repr=False)
    root: Node = field(repr=False)

    @property
    def input(self) -> Shape:
        return self.root.input

    @property
    def classes(self) -> int:
        return self.root.output.channels

    @cached_property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the canonical form, input shape included (48 bits: a chance of 1e-5 that any
        two of 75,000 networks clash).
        """
        shape = [self.input.channels, self.input.height, self.input.width]
        text = json.dumps([shape, structure(self.root)], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def to_json(self) -> dict[str, Any]:
        """Family, options and id: enough to build it again and to see that it is the same one."""
        return {"family": self.family, "options": dict(self.options), "arch_id": self.id}
