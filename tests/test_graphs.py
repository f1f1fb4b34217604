"""Peak memory and receptive field, worked out by hand on tiny modules and compared with published figures."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from mnet_search.models.arch import MnetError, Shape
from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.models.traced import build_torchvision, peak_activations, receptive_field, survey, trace


class Sum(nn.Module):
    """x + body(x), or shortcut(x) + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Gate(nn.Module):
    """x * gate(x)."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Concat(nn.Module):
    """The branches beside each other."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Halves(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, the others go through a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, dim=1)
        return torch.cat((kept, self.conv(worked)), dim=1)


def chain(*channels: int, kernel: int = 3) -> nn.Sequential:
    """Convolutions that keep the size, from the first number of channels to the next and so on."""
    return nn.Sequential(*(nn.Conv2d(a, b, kernel, padding=kernel // 2) for a, b in pairwise(channels)))


IN_PLACE = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten())
EXCITE = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid())
# On maps of 4 x 4, so 16 elements a channel; the channels alive at the widest step are written out.
PEAKS = [
    (chain(8, 8), 8, 8 + 8),
    (chain(2, 8, 4), 2, 8 + 4),  # the image is gone when the second convolution runs
    (nn.Sequential(chain(3, 8), *IN_PLACE), 3, 3 + 8),  # none of these needs a tensor of its own
    (nn.Sequential(chain(3, 8), nn.MaxPool2d(1)), 3, 8 + 8),  # a pool does
    (Sum(chain(8, 8)), 8, 8 + 8),  # the sum is written over one of the two
    (Sum(chain(8, 16, 8)), 8, 8 + 16 + 8),  # the shortcut waits while the body is at its widest
    (Sum(chain(8, 4), chain(8, 4)), 8, 8 + 4 + 4),
    (Sum(nn.ReLU()), 8, 8 + 8),  # the shortcut needs x as it was
    (nn.Sequential(Sum(nn.ReLU()), nn.ReLU()), 8, 8 + 8),
    (Concat(chain(8, 4), chain(8, 2)), 8, 8 + 4 + 2),  # at the second branch; at the copy x is gone: 4 + 2 + 6
    (Concat(chain(2, 4), chain(2, 4)), 2, 4 + 4 + 8),  # at the copy
    (Halves(), 8, 8 + 4 + 8),  # the half that passes keeps all of x
]


@pytest.mark.parametrize(("module", "channels", "alive"), PEAKS)
def test_peak_by_hand(module: nn.Module, channels: int, alive: int) -> None:
    assert peak_activations(module, Shape(channels, 4, 4)) == 16 * alive


def test_peak_of_a_gate() -> None:
    # x (8 x 16) waits for its gate: pool 8, squeeze 8 + 2, excite 2 + 8; the product is written over x
    assert peak_activations(Gate(EXCITE), Shape(8, 4, 4)) == 8 * 16 + 10


def test_parameters_are_no_feature_maps() -> None:
    module = build_torchvision("vit_b_32", meta=True)
    # a block's MLP: the 50 tokens of its shortcut (768), those of the layer norm (768) and their 3072 hidden features
    assert peak_activations(module, Shape(3, 224, 224)) == 50 * (768 + 768 + 3072)


FIELDS = [
    (chain(3, 4, 4), 1 + 2 + 2),
    (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), chain(4, 4)), 3 + 2 * 2),
    (nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=2, dilation=2)), 2 + 4 * 2),
    (nn.Sequential(nn.Conv2d(3, 4, (1, 7)), nn.Conv2d(4, 4, (3, 1))), 7),  # wider than high
    (Sum(chain(3, 3, 3), chain(3, 3, kernel=1)), 5),
    (Concat(chain(3, 4, kernel=1), chain(3, 4, kernel=5), chain(3, 4, 4)), 5),
    (nn.Sequential(chain(3, 8), Gate(EXCITE), chain(8, 8)), 5),  # the gate sees all and counts nothing
    (nn.Sequential(chain(3, 8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8, 2)), 3),
    (nn.Sequential(chain(3, 8), nn.AdaptiveAvgPool2d(16), chain(8, 8)), 5),  # a pool that does nothing
    (nn.Sequential(chain(3, 8), nn.AdaptiveAvgPool2d(4), chain(8, 8)), 3),  # from here on a fixed grid over the image
    (nn.Sequential(chain(3, 8), nn.Softmax(dim=1)), None),
    (nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 2)), 1),
]


@pytest.mark.parametrize(("module", "field"), FIELDS)
def test_receptive_field_by_hand(module: nn.Module, field: int | None) -> None:
    assert receptive_field(module, Shape(3, 16, 16)) == field


@pytest.mark.parametrize(("name", "field"), [("alexnet", 195), ("vgg16", 212), ("inception_v3", 1311)])
def test_receptive_fields_that_are_published(name: str, field: int) -> None:
    # Araujo, Norris and Sim, Distill 2019 (doi 10.23915/distill.00021), and the table of their library,
    # github.com/google-research/receptive_field: alexnet_v2, vgg_16, inception_v3, mobilenet_v1
    assert receptive_field(build_torchvision(name, meta=True), Shape(3, 224, 224)) == field


@pytest.mark.parametrize("options", [{}, {"block": "inverted_residual", "se": 0.25, "resolution": 64}])
def test_our_own_modules_are_read_too(options: dict) -> None:
    arch = create("mobilenet_v1", width=0.25, **options)
    found, closed = survey(build(arch), arch.input), costs(arch)
    assert (found.params, found.mult_adds, found.activations) == (closed.params, closed.mult_adds, closed.activations)
    # A stem of 3x3/2, then depthwise 3x3 of strides 1 2 1 2 1 2 1 1 1 1 1 2 1: each adds twice the product of the
    # strides before it. 315 is published too, where the test above says.
    assert found.receptive_field == 1 + 2 * (1 + 2 + 2 + 4 + 4 + 8 + 8 + 5 * 16 + 16 + 32) == 315


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_read_says_so() -> None:
    with pytest.raises(MnetError, match=r"torch\.fx cannot follow the forward of Branching: symbolically traced"):
        trace(Branching(), Shape(3, 4, 4))
    with pytest.raises(MnetError, match=r"Sequential has ConvTranspose2d 0, whose mult-adds are not known; use nn\."):
        trace(nn.Sequential(nn.ConvTranspose2d(3, 3, 2)), Shape(3, 4, 4))
