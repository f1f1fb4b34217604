"""The description of a network: a frozen tree of primitive layers whose shapes are known.

Everything that speaks about a network reads this tree: `factory` maps it to modules, `complexity` folds it to costs,
later readers time, draw and export it. A primitive knows its input shape, so a tree that exists is a tree whose shapes
fit.

Nodes are shared freely between networks: what is read from one (its canonical form, its costs) is kept on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

Activation = Literal["relu", "relu6", "hswish", "silu", "sigmoid", "hsigmoid"]
ACTIVATIONS: tuple[str, ...] = ("relu", "relu6", "hswish", "silu", "sigmoid", "hsigmoid")


# torch's own, as torchvision's MobileNetV2 and ResNets have them.
NORM_EPS, NORM_MOMENTUM = 1e-5, 0.1
# The rule for starting weights where a family says none. MobileNetV1 trained better from it than from He's over the
# fan-in, under the default recipe (torch 2.15, one thread of an AMD EPYC): 71.4 to 65.9 % after 4 epochs of CIFAR-10
# (one seed), and 90.9 to 66.2 % after 5 epochs of digits (mean of six networks, two seeds each).
DEFAULT_INIT = "torch"
# The rule that an id leaves unsaid: it was the default before 0.2, and ids of then stay what they were.
UNSAID_INIT = "he_fan_in"


class MnetError(Exception):
    """An expected failure: its text is one sentence for the user, its exit code what the command line returns."""

    exit_code: int = 2


class OptionError(MnetError):
    """An option of a family or block that cannot be: names the option, the value seen and what is allowed."""

    def __init__(self, option: str, value: object, allowed: str):
        super().__init__(f"{option}={value!r} is not possible: {allowed}")
        self.option, self.value, self.allowed = option, value, allowed


class UnknownOptionError(OptionError):
    """An option that the family or block does not have."""

    def __init__(self, option: str, owner: str, known: str):
        MnetError.__init__(self, f"{owner} has no option {option!r}{known}")
        self.option, self.value, self.allowed = option, None, known


class TooSmallError(MnetError):
    """A layer that would shrink its input below one pixel."""


class Shape(NamedTuple):
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
T = TypeVar("T")


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
    """Batch normalisation over the channels, with a learned scale and shift (Ioffe and Szegedy, arXiv 1502.03167).

    `momentum` is torch's: the share of the newest batch in the running statistics (1 minus TensorFlow's).
    """

    input: Shape
    eps: float = NORM_EPS
    momentum: float = NORM_MOMENTUM

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

    @cached_property
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
class External:
    """A whole network that another package builds; `source` says which, `options` how, as (name, value) pairs. Its
    costs are traced, not folded.
    """

    input: Shape
    source: str
    features: int
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def output(self) -> Shape:
        return Shape(self.features)


@dataclass(frozen=True)
class Chain:
    """One node after another; `children` are (label, node) pairs."""

    input: Shape
    children: tuple[tuple[str, Node], ...]

    @cached_property
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

    @cached_property
    def input(self) -> Shape:
        return self.body.input

    @cached_property
    def output(self) -> Shape:
        return self.body.output


@dataclass(frozen=True)
class Scale:
    """x * gate(x), where the gate gives one number per channel (squeeze-and-excitation)."""

    gate: Node

    @cached_property
    def input(self) -> Shape:
        return self.gate.input

    @cached_property
    def output(self) -> Shape:
        return self.gate.input


@dataclass(frozen=True)
class Branches:
    """Several nodes over one input, concatenated along the channels."""

    children: tuple[tuple[str, Node], ...]

    @cached_property
    def input(self) -> Shape:
        return self.children[0][1].input

    @cached_property
    def output(self) -> Shape:
        first = self.children[0][1].output
        return Shape(sum(node.output.channels for _, node in self.children), first.height, first.width)


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


def kept(node: Node, name: str, make: Callable[[Node], T]) -> T:
    """`make(node)`, worked out once and kept on the node under `name`: many networks share blocks and stages."""
    memo = vars(node)
    if name not in memo:
        memo[name] = make(node)
    found: T = memo[name]
    return found


def canonical(node: Node) -> str:
    """What is computed, as comma-separated JSON lists, without labels and without the way it was put together; "" for
    a node that does nothing.

    Chains dissolve into the row around them, so networks that compute the same thing layer by layer have one form.
    """
    return kept(node, "_canonical", _canonical)


def _canonical(node: Node) -> str:
    match node:
        case Chain(children=children):
            return ",".join(filter(None, [canonical(child) for _, child in children]))
        case Branches(children=children):
            return f'["branches",{",".join(f"[{canonical(child)}]" for _, child in children)}]'
        case Residual(body=body, shortcut=shortcut):
            return f'["residual",[{canonical(body)}],[{canonical(shortcut) if shortcut is not None else ""}]]'
        case Scale(gate=gate):
            return f'["scale",[{canonical(gate)}]]'
    return json.dumps(_form(node), separators=(",", ":"))


def _form(node: Node) -> list[Any]:
    match node:
        case Conv():
            shape = [node.input.channels, node.channels, node.kernel, node.stride, node.padding, node.groups]
            return ["conv", *shape, node.bias]
        case Norm(eps=eps, momentum=momentum):
            return ["norm"] if (eps, momentum) == (NORM_EPS, NORM_MOMENTUM) else ["norm", eps, momentum]
        case Act():
            return ["act", node.kind]
        case Pool():
            return ["pool", node.kind, node.kernel, node.stride, node.padding]
        case Linear():
            return ["linear", node.input.channels, node.features, node.bias]
        case Dropout():
            return ["dropout", node.rate]
        case Flatten():
            return ["flatten"]
        case External():
            return ["external", node.source, node.features, *node.options]
    raise TypeError(f"not a node of the description: {node!r}")


@dataclass(frozen=True, eq=False)
class Arch:
    """One fully resolved network: where it came from (family and options), what it is (the tree) and by which rule its
    weights start (a name of the factory's INITIALISATIONS).

    Two Archs are equal when their networks are, however they were described.
    """

    family: str
    options: Mapping[str, Any] = field(repr=False)
    root: Node = field(repr=False)
    init: str = DEFAULT_INIT

    @property
    def input(self) -> Shape:
        return self.root.input

    @property
    def classes(self) -> int:
        return self.root.output.channels

    @cached_property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the canonical form, input shape and initialisation included (48 bits: a
        chance of 1e-5 that any two of 75,000 networks clash).
        """
        channels, height, width = self.input
        init = "" if self.init == UNSAID_INIT else f',"{self.init}"'
        text = f"[[{channels},{height},{width}],[{canonical(self.root)}]{init}]"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arch) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def to_json(self) -> dict[str, Any]:
        """Family, options and id: enough to build it again and to see that it is the same one."""
        return {"family": self.family, "options": dict(self.options), "arch_id": self.id}
