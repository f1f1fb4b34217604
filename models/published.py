"""What the MobileNetV1 paper prints (Howard et al., arXiv 1704.04861, tables 2 to 9), beside what the layers add up to.

Printed figures are never fitted to: where the sum differs, the note says why. To add a row, write it in ROWS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mnet_search.models.arch import Shape
from mnet_search.models.blocks import make_block
from mnet_search.models.complexity import costs, layers, shares
from mnet_search.models.costs import LayerCosts
from mnet_search.models.families import create


@dataclass(frozen=True)
class Row:
    """A network of the paper's tables 4 to 9: ImageNet top-1 accuracy, millions of mult-adds and of params as printed,
    and how the network is described here.
    """

    table: int
    model: str
    top1_percent: float
    mult_adds_m: float
    params_m: float
    family: str = "mobilenet_v1"
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Share:
    """A kind of layer in table 2: its share of 1.0 MobileNet-224 in percent as printed."""

    kind: str
    mult_adds_percent: float
    params_percent: float
    note: str = ""


@dataclass(frozen=True)
class OneLayer:
    """A row of table 3: one layer at the size of the network's middle, millions as printed."""

    model: str
    mult_adds_m: float
    params_m: float
    block: str
    channels: int
    size: int


@dataclass(frozen=True)
class Compared:
    """One line of `count --table paper`: printed and exact figures. In table 2 the figures are percent, elsewhere
    mult-adds and params; `top1_percent` is the paper's.
    """

    table: int
    model: str
    top1_percent: float | None
    printed_mult_adds: float
    exact_mult_adds: float
    printed_params: float
    exact_params: float
    note: str


TABLE_2 = (
    Share("1x1 conv", 94.86, 74.59),
    Share("depthwise conv", 3.06, 1.06),
    Share("full conv", 1.19, 0.02, "a misprint for 1.91: the four printed shares add up to 99.29"),
    Share("linear", 0.18, 24.33),
)
TABLE_3 = (
    OneLayer("full convolution", 462, 2.36, "conv", 512, 14),
    OneLayer("depthwise separable", 52.3, 0.27, "separable", 512, 14),
    OneLayer("alpha = 0.75", 29.6, 0.15, "separable", 384, 14),
    OneLayer("rho = 0.714", 15.1, 0.15, "separable", 384, 10),
)
ROWS = (
    Row(
        *(4, "all full convolutions", 71.7, 4866, 29.3),
        options={"block": "conv"},
        note="printed without the 1.0 M of the linear layer",
    ),
    Row(4, "1.0 MobileNet-224", 70.6, 569, 4.2),
    Row(
        *(5, "0.75 MobileNet-224", 68.4, 325, 2.6),
        options={"width": 0.75},
        note="the authors' released model card lists 317 M",
    ),
    Row(5, "shallow MobileNet-224", 65.3, 307, 2.9, options={"depth": "shallow"}),
    Row(6, "1.0 MobileNet-224", 70.6, 569, 4.2),
    Row(6, "0.75 MobileNet-224", 68.4, 325, 2.6, options={"width": 0.75}),
    Row(6, "0.5 MobileNet-224", 63.7, 149, 1.3, options={"width": 0.5}),
    Row(6, "0.25 MobileNet-224", 50.6, 41, 0.5, options={"width": 0.25}),
    Row(7, "1.0 MobileNet-224", 70.6, 569, 4.2),
    Row(7, "1.0 MobileNet-192", 69.1, 418, 4.2, options={"resolution": 192}),
    Row(7, "1.0 MobileNet-160", 67.2, 290, 4.2, options={"resolution": 160}, note="printed cut, not rounded"),
    Row(7, "1.0 MobileNet-128", 64.4, 186, 4.2, options={"resolution": 128}),
    Row(8, "1.0 MobileNet-224", 70.6, 569, 4.2),
    Row(
        *(8, "GoogleNet", 69.8, 1550, 6.8, "torchvision:googlenet"),
        note="torchvision's has 3x3 where the paper's has 5x5; with 5x5 it is 1583 M and 7.0 M",
    ),
    Row(8, "VGG 16", 71.5, 15300, 138, "torchvision:vgg16", note="printed without its linear layers (15347 M), cut"),
    Row(
        *(9, "0.50 MobileNet-160", 60.2, 76, 1.32),
        options={"width": 0.5, "resolution": 160},
        note="params printed without batch norm",
    ),
    Row(
        *(9, "SqueezeNet", 57.5, 1700, 1.25, "torchvision:squeezenet1_0"),
        note="printed at 2 per multiply-add, of the authors' 227 px network (861 M)",
    ),
    Row(
        *(9, "AlexNet", 57.2, 720, 60, "torchvision:alexnet"),
        note="printed for the original in two groups at 227 px (724 M, 61.0 M)",
    ),
)


def compare() -> Iterator[Compared]:
    """Every row of the paper's tables 2 to 9 with the exact figures beside the printed ones. Imports torch for the
    networks that torchvision describes.
    """
    found = shares(list(layers(create("mobilenet_v1"))))
    for share in TABLE_2:
        mult_adds, params = (100 * part for part in found[share.kind])
        printed = share.mult_adds_percent, share.params_percent
        yield Compared(2, f"% in {share.kind}", None, printed[0], mult_adds, printed[1], params, share.note)
    for layer in TABLE_3:
        weighted = _weighted(layer)
        mult_adds, params = sum(r.costs.mult_adds for r in weighted), sum(r.weights for r in weighted)
        yield Compared(3, layer.model, None, layer.mult_adds_m * 1e6, mult_adds, layer.params_m * 1e6, params, "")
    for row in ROWS:
        exact = costs(create(row.family, **row.options))
        printed = row.mult_adds_m * 1e6, row.params_m * 1e6
        yield Compared(
            row.table, row.model, row.top1_percent, printed[0], exact.mult_adds, printed[1], exact.params, row.note
        )


def _weighted(layer: OneLayer) -> list[LayerCosts]:
    shape = Shape(layer.channels, layer.size, layer.size)
    node = make_block(layer.block, shape, channels=layer.channels, stride=1, options={})
    return [row for row in layers(node) if row.weights]
