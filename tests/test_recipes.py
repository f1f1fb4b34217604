"""Every recipe, optimiser and schedule: what they may be, and that they move as torch's own do."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from mnet_search.models.arch import MnetError
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.optimisers import OPTIMISERS, Optimiser
from mnet_search.search.recipes import RECIPES, SCHEDULES, Position, Recipe, TrainingOptions
from mnet_search.spaces.schema import Training

TINY = create("mobilenet_v1", width=0.1, resolution=9, depth="shallow", stem_stride=1, classes=10, in_channels=1)
NAMES = [name for name, _ in build(TINY).named_parameters()]
LINEAR = {"classifier.weight"}
WEIGHTS = {name for name in NAMES if name.endswith("pointwise.conv.weight")} | {"stem.conv.weight"} | LINEAR
DECAYED = {"weights": WEIGHTS, "linear": LINEAR, "all": set(NAMES)}

BASE = Recipe(learning_rate=0.1, weight_decay=0.0)


# ---------------------------------------------------------------- optimisers


def reference(recipe: Recipe, parameters: list[Any]) -> torch.optim.Optimizer:
    """Torch's own."""
    match recipe.optimiser:
        case "sgd":
            return torch.optim.SGD(parameters, lr=1.0, momentum=recipe.momentum, nesterov=True)
        case "adam":
            betas = (recipe.momentum, recipe.second_momentum)
            return torch.optim.Adam(parameters, lr=1.0, betas=betas, eps=recipe.epsilon)
        case _:
            alpha, momentum = recipe.second_momentum, recipe.momentum
            return torch.optim.RMSprop(parameters, lr=1.0, alpha=alpha, eps=recipe.epsilon, momentum=momentum)


@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
@pytest.mark.parametrize("decayed", list(DECAYED))
@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_every_optimiser_moves_as_torchs_own_does(name: str, decayed: str, clip_norm: float) -> None:
    recipe = replace(BASE, optimiser=name, weight_decay=0.01, decayed=decayed, clip_norm=clip_norm, epsilon=1e-3)
    ours, theirs = build(TINY, 3), build(TINY, 3)
    mine = Optimiser(ours, recipe)
    chosen = {id(p) for key, p in theirs.named_parameters() if key in DECAYED[decayed]}
    groups = [
        {"params": [p for p in theirs.parameters() if (id(p) in chosen) is wanted], "weight_decay": decay}
        for wanted, decay in ((True, 0.01), (False, 0.0))
    ]
    other = reference(recipe, [group for group in groups if group["params"]])
    for step in range(4):
        rate = 0.01 / (step + 1)
        images = torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(step))
        for module in (ours, theirs):
            nn.functional.cross_entropy(module(images), torch.arange(8)).backward()
        if clip_norm:
            total = nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
            assert total > clip_norm
        for group in other.param_groups:
            group["lr"] = rate
        other.step()
        other.zero_grad()
        mine.step(rate)
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Depthwise filters see few pixels here, so Adam divides tiny gradients by tiny roots.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_an_unknown_optimiser_is_named() -> None:
    with pytest.raises(MnetError, match=r"unknown optimiser 'adm'; did you mean adam\?"):
        Optimiser(build(TINY), replace(BASE, optimiser="adm"))


@pytest.mark.parametrize("decayed", list(DECAYED))
def test_weight_decay_reaches_what_it_is_for(decayed: str) -> None:
    module = build(TINY)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    recipe = replace(BASE, weight_decay=0.5, decayed=decayed)
    Optimiser(module, recipe).step(1.0)  # no gradients: decay alone moves anything
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {name for name in DECAYED[decayed] if start[name].any()}


def test_the_average_follows_the_weights_and_is_exchanged_with_them() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimiser = Optimiser(module, replace(BASE, momentum=0.0, average=0.5))
    expected, weight = 0.0, 0.0
    for step in range(1, 30):
        module.weight.grad = torch.full((1, 1), -1.0)
        optimiser.step(1.0)
        weight += 1.0
        memory = min(0.5, step / (step + 10))
        expected = memory * expected + (1 - memory) * weight
    optimiser.swap()
    assert module.weight.item() == pytest.approx(expected)
    optimiser.swap()
    assert module.weight.item() == weight
    plain = Optimiser(module, BASE)
    plain.swap()
    assert module.weight.item() == weight
    assert len(plain.state()) == 1


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_gives_shares_of_the_peak(name: str) -> None:
    recipe = replace(BASE, schedule=name)
    for per_epoch, epochs in ((10, 4), (1, 1), (7, 3)):
        steps = per_epoch * epochs
        shares = [SCHEDULES[name](recipe, Position(step, steps, per_epoch)) for step in range(steps)]
        assert all(0 < share <= 1 for share in shares)
        assert max(shares) == 1


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_climbs_to_its_peak_and_falls_to_nearly_zero(anneal: str) -> None:
    recipe = Recipe(learning_rate=0.4, warmup=0.25, anneal=anneal)
    shares = [SCHEDULES["one_cycle"](recipe, Position(step, 40, 10)) for step in range(40)]
    assert max(shares) == shares[9] == 1
    assert shares[:10] == sorted(shares[:10])
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert 0 < shares[-1] < 1 / 30


def test_exponential_falls_in_steps() -> None:
    recipe = replace(BASE, schedule="exponential", decay_rate=0.5, decay_epochs=2)
    shares = [SCHEDULES["exponential"](recipe, Position(step, 50, 10)) for step in range(50)]
    assert shares == [1.0] * 20 + [0.5] * 20 + [0.25] * 10


# ---------------------------------------------------------------- options


def test_the_learning_rate_of_a_recipe_scales_with_the_batch_and_a_given_one_does_not() -> None:
    assert TrainingOptions(batch_size=64).resolved().learning_rate == RECIPES["default"].learning_rate / 2
    assert TrainingOptions(batch_size=64, learning_rate=0.7).resolved().learning_rate == 0.7
    for name in ("paper", "adam_plain"):
        assert TrainingOptions(name, batch_size=32).resolved() == RECIPES[name]


def test_a_space_changes_single_values_of_a_recipe() -> None:
    changed = TrainingOptions("adam_plain", mixup=0.2, flip=True, optimiser="rmsprop").resolved()
    assert changed == replace(RECIPES["adam_plain"], mixup=0.2, flip=True, optimiser="rmsprop")


def test_options_schema_and_recipe_have_the_same_fields() -> None:
    ours = {field.name for field in fields(TrainingOptions)}
    assert ours == set(Training.model_fields)
    assert {field.name for field in fields(Recipe)} - {"reference_batch"} == ours - {
        *("recipe", "epochs", "batch_size", "teacher")
    }
    assert asdict(TrainingOptions()) == Training().model_dump()


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_is_data_that_can_be(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe == Recipe(**asdict(recipe))
    assert recipe.optimiser in OPTIMISERS


USERS = Recipe(learning_rate=0.5)


def test_a_recipe_of_the_users_own_is_taken_by_its_name() -> None:
    assert TrainingOptions(f"{__name__}:USERS", batch_size=128).resolved() == USERS
    with pytest.raises(MnetError, match=r"recipe .*:NAMES' is a list; it must be a Recipe"):
        TrainingOptions(f"{__name__}:NAMES")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "training.epochs: 0 is not a whole number from 1 up"),
        ({"batch_size": 1.5}, "training.batch_size: 1.5 is not a whole number from 1 up"),
        ({"learning_rate": 0.0}, "training.learning_rate: 0.0 is not a number above 0; leave it out for the recipe's"),
        ({"learning_rate": math.nan}, "training.learning_rate: nan is not a number above 0"),
        ({"recipe": "defualt"}, r"unknown recipe 'defualt'; did you mean default\?"),
        ({"momentum": 1.0}, "training.momentum: 1.0 is not a number from 0 to below 1"),
        ({"mixup": -1}, "training.mixup: -1 is not a number from 0 up"),
        ({"crop": True}, "training.crop: True is not a number from 0 to 1"),
        ({"schedule": "cyclic"}, r"unknown schedule 'cyclic' \(known: one_cycle, constant, exponential; or"),
        ({"decayed": "bias"}, r"training.decayed: 'bias' is not known \(known: weights, linear, all\)"),
        ({"flip": "yes"}, "training.flip: 'yes' is not true or false"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MnetError, match=message):
        TrainingOptions(**options)
