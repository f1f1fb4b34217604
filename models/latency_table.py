"""A table of layer latencies: what a network takes is the sum of its layers' times, calibrated on whole networks.

Plain data without torch: `layer_timing` fills a table, this file says which layers a network has, fits, predicts and
judges. A *layer* here is what runs as one step in inference: a convolution or linear layer with the batch norm folded
into it and the activation after it, a pooling, the addition of a residual, the multiplication of a gate.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mnet_search.models.arch import (
    Act,
    Arch,
    Branches,
    Chain,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MnetError,
    Node,
    Norm,
    Pool,
    Residual,
    Scale,
    Shape,
)
from mnet_search.models.complexity import costs

NEIGHBOURS = 3  # layers of the same kind that an unknown one is estimated from
PRIOR = 0.02  # weight of "a layer takes what was measured" against the calibration networks
FACTORS = ("conv", "conv1x1", "depthwise", "linear", "other")  # each has its own factor
CONSTANTS = ("per_layer_ms", "per_network_ms")
JOINS: dict[type, str] = {Residual: "add", Scale: "scale", Branches: "concat"}


@dataclass(frozen=True)
class Layer:
    """One step of inference. `kind` is conv, conv1x1, depthwise, linear, global_avg pool (or max, avg), norm, act, add,
    scale or concat; `mult_adds` and `weights` (biases included) are at batch 1.
    """

    kind: str
    input: Shape
    output: Shape
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 1
    act: str = ""
    norm: bool = False
    mult_adds: int = field(default=0, compare=False)
    weights: int = field(default=0, compare=False)

    @property
    def key(self) -> str:
        """All that decides the time of the layer on one device under one protocol."""
        window = f" k{self.kernel}s{self.stride}p{self.padding}g{self.groups}" if self.kernel else ""
        after = " norm" * self.norm + (f" {self.act}" if self.act else "")
        return f"{self.kind} {self.input}>{self.output}{window}{after}"


@dataclass(frozen=True)
class Part:
    """Nodes that run as one step, or one combinator (Residual, Scale, Branches) whose `layer` is what joins its
    branches; `layer` is None for what takes no time.
    """

    nodes: tuple[Node, ...]
    layer: Layer | None


def parts(node: Node) -> list[Part]:
    """A node as a row of steps: chains dissolved, convolution, norm and activation taken together."""
    waiting, found = _dissolved(node), []
    while waiting:
        first, row = waiting.pop(0)
        taken = [first]
        if isinstance(first, Conv | Linear):
            for kind in (Norm, Act):
                # only within one chain: a norm at the start of the next block is not folded
                if waiting and isinstance(waiting[0][0], kind) and waiting[0][1] is row:
                    taken.append(waiting.pop(0)[0])
        found.append(Part(tuple(taken), _layer(taken)))
    return found


def branches(node: Node) -> list[Node] | None:
    """What a combinator runs over its input, a missing shortcut left out; None for a primitive."""
    match node:
        case Residual(body=body, shortcut=shortcut):
            return [body] if shortcut is None else [body, shortcut]
        case Scale(gate=gate):
            return [gate]
        case Branches(children=children):
            return [child for _, child in children]
    return None


def layers_of(network: Arch | Node) -> Iterator[Layer]:
    """Every layer of a network, in the order in which it runs."""
    for part in parts(network.root if isinstance(network, Arch) else network):
        for branch in branches(part.nodes[0]) or ():
            yield from layers_of(branch)
        if part.layer is not None:
            yield part.layer


def _dissolved(node: Node, row: Node | None = None) -> list[tuple[Node, Node | None]]:
    """Every node with the chain that it stands in."""
    if isinstance(node, Chain):
        return [part for _, child in node.children for part in _dissolved(child, node)]
    return [(node, row)]


def _layer(nodes: Sequence[Node]) -> Layer | None:
    first, last = nodes[0], nodes[-1]
    act, norm = last.kind if isinstance(last, Act) else "", any(isinstance(node, Norm) for node in nodes[1:])
    cost = costs(first) if isinstance(first, Conv | Linear) else None
    mult_adds, weights = (cost.mult_adds, cost.params) if cost else (0, 0)
    match first:
        case Dropout() | Flatten():
            return None
        case Conv():
            depthwise = first.groups == first.input.channels == first.channels and first.groups > 1
            kind = "depthwise" if depthwise else "conv1x1" if first.kernel == 1 else "conv"
            window = (first.kernel, first.stride, first.padding, first.groups)
            return Layer(kind, first.input, first.output, *window, act, norm, mult_adds, weights)
        case Linear():
            return Layer("linear", first.input, first.output, act=act, mult_adds=mult_adds, weights=weights)
        case Pool():
            return Layer(f"{first.kind} pool", first.input, first.output, first.kernel, first.stride, first.padding)
        case Norm() | Act():
            return Layer(type(first).__name__.lower(), first.input, first.output, act=act)
        case Residual() | Scale() | Branches():
            return Layer(JOINS[type(first)], first.input, first.output)
    raise MnetError(
        f"a latency table cannot hold a {type(first).__name__.lower()} network, whose layers the description does not "
        "know; measure it (leave --table out)"
    )


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of one batch; `estimated` names the layers that the table does not hold, which were estimated from
    their nearest neighbours of the same kind.
    """

    latency_ms: float
    n_layers: int
    estimated: tuple[str, ...]


@dataclass(frozen=True)
class TableError:
    """How far predictions lie from measurements of `n` networks that the table has not seen: median and 90th percentile
    of the absolute relative error, and Spearman's rank correlation. `n_estimated` of the networks had layers that
    the table did not hold.
    """

    n: int
    median: float
    p90: float
    spearman: float
    n_estimated: int


@dataclass(frozen=True)
class LatencyTable:
    """Layer times of one space on one device. `fingerprint` says which device, versions and protocol; `layers` maps a
    layer's key to [milliseconds, kind, its sizes]; `calibration` holds the factors by kind and the constants;
    `held_out` has [arch id, measured, predicted milliseconds] for every network that `error` is of.
    """

    space: str
    fingerprint: Mapping[str, Any]
    layers: Mapping[str, Sequence[Any]] = field(repr=False)
    calibration: Mapping[str, float]
    n_networks: int  # whole networks that layers were timed in and the calibration was fitted to
    reference_ms: float
    drift: float
    seconds: float = 0.0
    error: TableError | None = None
    held_out: Sequence[Sequence[Any]] = field(default=(), repr=False)

    def predict(self, arch: Arch) -> Prediction:
        """Raises MnetError naming a layer of a kind that the table knows nothing of."""
        found, estimated = [], []
        for layer in layers_of(arch):
            row = self.layers.get(layer.key)
            if row is None:
                estimated.append(layer.key)
            found.append((layer, float(row[0]) if row is not None else self._estimate(layer)))
        row = design_row(found)
        names = (*FACTORS, *CONSTANTS)
        total_ms = sum(self.calibration[name] * value for name, value in zip(names, row, strict=True))
        return Prediction(total_ms, len(found), tuple(dict.fromkeys(estimated)))

    def _estimate(self, layer: Layer) -> float:
        """Milliseconds of a layer that was not measured: what a line through all of its kind says, times how far the
        nearest of them lie from that line. So it goes on beyond the sizes that were measured.
        """
        rows = [row for row in self.layers.values() if row[1] == layer.kind]
        if not rows:
            raise MnetError(
                f"the latency table of {self.space} has no {layer.kind} layer to estimate {layer.key} from; "
                "measure the network instead (leave --table out), or build a table of a space that has such layers"
            )
        if layer.kind not in self._lines:
            self._lines[layer.kind] = line_through([row[2] for row in rows], [row[0] for row in rows])
        line, logs = self._lines[layer.kind], np.log1p([row[2] for row in rows])
        distances = np.linalg.norm(logs - np.log1p(sizes(layer)), axis=1)
        nearest = np.argsort(distances, kind="stable")[:NEIGHBOURS]
        ratios = [math.log(rows[i][0] / on_line(line, rows[i][2])) for i in nearest]
        return on_line(line, sizes(layer)) * math.exp(np.average(ratios, weights=1 / (distances[nearest] + 0.05)))

    @cached_property
    def _lines(self) -> dict[str, list[float]]:
        return {}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LatencyTable:
        error = values.get("error")
        return cls(**{**values, "error": TableError(**error) if error else None})


def sizes(layer: Layer) -> list[int]:
    """Where a layer lies among others of its kind: mult-adds, elements in and out, weights, area of kernel and
    stride.
    """
    elements = layer.input.elements + layer.output.elements
    return [layer.mult_adds, elements, layer.weights, layer.kernel**2, layer.stride**2]


def line_through(rows: Sequence[Sequence[int]], times_ms: Sequence[float]) -> list[float]:
    """Milliseconds for a call, a mult-add, an element and a weight, none negative, by least squares on the relative
    error.
    """
    matrix = np.column_stack([np.ones(len(rows)), np.array(rows, dtype=float)[:, :3]])
    scale = np.maximum(matrix.max(axis=0), 1)
    solution = _not_negative(matrix / scale / np.array(times_ms)[:, None], np.ones(len(rows)))
    return [float(value) for value in solution / scale]


def on_line(line: Sequence[float], row: Sequence[int]) -> float:
    """Milliseconds that a line says for a layer of these sizes."""
    return max(1e-6, sum(a * b for a, b in zip(line, (1, *row[:3]), strict=True)))


def refuse_other_device(table: LatencyTable, here: Mapping[str, Any]) -> None:
    """Raises MnetError, naming both, where a table was not taken on this device under this protocol."""
    names = [name for name in {**table.fingerprint, **here} if table.fingerprint.get(name) != here.get(name)]
    if names:
        theirs, ours = (", ".join(f"{n} {of.get(n, 'unknown')}" for n in names) for of in (table.fingerprint, here))
        raise MnetError(
            f"the latency table of {table.space} was taken with {theirs}; this is {ours}: build one here with "
            "mnet-search latency table --build SPACE"
        )


# ---------------------------------------------------------------- calibration and error


def design_row(timed: Iterable[tuple[Layer, float]]) -> list[float]:
    """A network's layer times as the calibration sees them: milliseconds by kind, number of layers, 1."""
    sums, n_layers = dict.fromkeys(FACTORS, 0.0), 0
    for layer, ms in timed:
        sums[layer.kind if layer.kind in sums else "other"] += ms
        n_layers += 1
    return [*sums.values(), float(n_layers), 1.0]


def calibrate(rows: Sequence[Sequence[float]], measured_ms: Sequence[float]) -> dict[str, float]:
    """Factors by kind and constants, none negative, by least squares on the relative error of whole networks.

    A weak prior holds every factor at 1, so that a kind that is the same in all networks keeps what was measured.
    """
    relative = np.array(rows) / np.array(measured_ms)[:, None]
    prior = np.zeros((len(FACTORS), len(FACTORS) + len(CONSTANTS)))
    np.fill_diagonal(prior, math.sqrt(PRIOR * len(rows)) * relative[:, : len(FACTORS)].mean(axis=0))
    matrix = np.vstack([relative, prior])
    target = np.concatenate([np.ones(len(rows)), prior.sum(axis=1)])
    solution = _not_negative(matrix, target)
    return dict(zip((*FACTORS, *CONSTANTS), map(float, solution), strict=True))


def _not_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least-squares solution without negative parts."""
    from scipy.optimize import nnls  # here, since only fits need it

    return np.asarray(nnls(matrix, target)[0])


def judge(table: LatencyTable, archs: Sequence[Arch], measured_ms: Sequence[float]) -> LatencyTable:
    """The table with its error on networks measured apart from it; without one for fewer than two."""
    predictions = [table.predict(arch) for arch in archs]
    predicted_ms = [p.latency_ms for p in predictions]
    pairs = [list(row) for row in zip((arch.id for arch in archs), measured_ms, predicted_ms, strict=True)]
    if len(archs) < 2:
        return replace(table, held_out=pairs)
    errors = [abs(p / m - 1) for p, m in zip(predicted_ms, measured_ms, strict=True)]
    error = TableError(
        n=len(errors),
        median=statistics.median(errors),
        p90=float(np.quantile(errors, 0.9)),
        spearman=spearman(predicted_ms, measured_ms),
        n_estimated=sum(bool(p.estimated) for p in predictions),
    )
    return replace(table, error=error, held_out=pairs)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; ties share their mean rank. 0 where one side is constant."""
    a, b = _ranks(first), _ranks(second)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, inverse, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


# ---------------------------------------------------------------- which networks


@dataclass(frozen=True)
class Selection:
    """Networks to time layers in and to calibrate on, and networks to judge by, which are never used for either."""

    cover: tuple[Arch, ...]
    held_out: tuple[Arch, ...]
    n_layers: int  # distinct layers of the space
    n_uncovered: int  # distinct layers that no covering network has


def select(archs: Sequence[Arch], *, n_held_out: int = 30, most: int = 400, seed: int = 0) -> Selection:
    """Hold out a random sample (a fifth at most), then cover every distinct layer of the others greedily, by `most`
    networks at the most.
    """
    unique = sorted({arch.id: arch for arch in archs}.values(), key=lambda arch: arch.id)
    random.Random(seed).shuffle(unique)
    n = min(n_held_out, len(unique) // 5)
    held_out, rest = unique[:n], unique[n:]
    keys = {arch.id: {layer.key for layer in layers_of(arch)} for arch in unique}
    everything = set().union(*keys.values()) if keys else set()
    cover: list[Arch] = []
    seen: set[str] = set()
    while rest and len(cover) < most:
        best = max(rest, key=lambda arch: len(keys[arch.id] - seen))
        if not keys[best.id] - seen:
            break
        cover.append(best)
        seen |= keys[best.id]
        rest.remove(best)
    return Selection(tuple(cover), tuple(held_out), len(everything), len(everything - seen))
