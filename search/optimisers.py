"""Optimisers as torch's own compute them, step for step, with weight decay where a recipe wants it.

Written out because constructing any torch.optim class imports torch._dynamo: 2 to 7 s and 150 MB in every worker. To
add one, write its rule and its row in OPTIMISERS at the foot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnet_search.models.tables import lookup
from mnet_search.search.recipes import Recipe

__all__ = ["OPTIMISERS", "Optimiser", "Rule"]

Tensors = list[Tensor]


@dataclass(frozen=True)
class Rule:
    """How an optimiser moves: `slots` tensors are remembered for each parameter, all zero at first.

    `move(parameters, gradients, slots, rate, step, recipe)` changes parameters and slots in place; steps count from 1,
    and the gradients are its own to overwrite.
    """

    slots: int
    move: Callable[[Tensors, Tensors, list[Tensors], float, int, Recipe], None]


class Optimiser:
    """The parameters of a module with what their recipe's rule remembers, and their running average where it keeps one.

    `step` reads nothing back from the device.
    """

    def __init__(self, module: nn.Module, recipe: Recipe):
        self.recipe = recipe
        self.rule = lookup(OPTIMISERS, recipe.optimiser, "optimiser")
        self.parameters: Tensors = [p for p in module.parameters() if p.requires_grad]
        self.slots = [[torch.zeros_like(p) for p in self.parameters] for _ in range(self.rule.slots)]
        self.averages = [p.detach().clone() for p in self.parameters] if recipe.average else None
        self.steps = 0
        chosen = {id(p) for p in _decayed(module, recipe.decayed)}
        self._decayed = [i for i, p in enumerate(self.parameters) if id(p) in chosen]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move the parameters along their gradients and clear these."""
        recipe, parameters = self.recipe, self.parameters
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if recipe.clip_norm:
            _clip(gradients, recipe.clip_norm)
        if recipe.weight_decay and self._decayed:
            decayed = [parameters[i] for i in self._decayed]
            torch._foreach_add_([gradients[i] for i in self._decayed], decayed, alpha=recipe.weight_decay)
        self.steps += 1
        self.rule.move(parameters, gradients, self.slots, learning_rate, self.steps, recipe)
        if self.averages is not None:
            # Early on the average remembers less, or it would be of the starting weights (much as TensorFlow does).
            memory = min(recipe.average, self.steps / (self.steps + 10))
            torch._foreach_lerp_(self.averages, parameters, 1 - memory)
        for p in parameters:
            p.grad = None

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights with their averages, for validation and back; nothing where no average is kept."""
        for p, average in zip(self.parameters, self.averages or (), strict=False):
            kept = p.detach().clone()
            p.copy_(average)
            average.copy_(kept)

    def state(self) -> list[Tensors]:
        """What a checkpoint keeps to go on, beside the module's own state: the slots, and the exchanged weights."""
        return [*self.slots, *([self.averages] if self.averages is not None else [])]

    @torch.no_grad()
    def load(self, state: list[Tensors], steps: int) -> None:
        """Take over a stored state after `steps` steps."""
        for own, stored in zip(self.state(), state, strict=True):
            for a, b in zip(own, stored, strict=True):
                a.copy_(b)
        self.steps = steps


def _decayed(module: nn.Module, which: str) -> Tensors:
    """The parameters that have weight decay."""
    if which == "all":
        return list(module.parameters())
    kinds = nn.Linear if which == "linear" else nn.Linear | nn.Conv2d
    return [part.weight for part in module.modules() if isinstance(part, kinds) and not _is_depthwise(part)]


def _is_depthwise(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d) and 1 < part.groups == part.in_channels


def _clip(gradients: Tensors, norm: float) -> None:
    """Scale all gradients alike so that their common norm is at most `norm` (Pascanu et al., arXiv 1211.5063)."""
    total = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(gradients))))
    torch._foreach_mul_(gradients, (norm / (total + 1e-6)).clamp(max=1.0))


def _sgd(
    parameters: Tensors, gradients: Tensors, slots: list[Tensors], rate: float, _step: int, recipe: Recipe
) -> None:
    """Nesterov's momentum: the step looks ahead along it (Sutskever et al. 2013)."""
    (momenta,) = slots
    torch._foreach_mul_(momenta, recipe.momentum)
    torch._foreach_add_(momenta, gradients)
    torch._foreach_add_(gradients, momenta, alpha=recipe.momentum)
    torch._foreach_add_(parameters, gradients, alpha=-rate)


def _adam(
    parameters: Tensors, gradients: Tensors, slots: list[Tensors], rate: float, step: int, recipe: Recipe
) -> None:
    """Kingma and Ba, arXiv 1412.6980, algorithm 1."""
    first, second = slots
    torch._foreach_lerp_(first, gradients, 1 - recipe.momentum)
    _remember_squares(second, gradients, recipe.second_momentum)
    roots = torch._foreach_sqrt(second)
    torch._foreach_div_(roots, (1 - recipe.second_momentum**step) ** 0.5)
    torch._foreach_add_(roots, recipe.epsilon)
    torch._foreach_addcdiv_(parameters, first, roots, -rate / (1 - recipe.momentum**step))


def _rmsprop(
    parameters: Tensors, gradients: Tensors, slots: list[Tensors], rate: float, _step: int, recipe: Recipe
) -> None:
    """Gradients divided by the root of their mean square, with momentum (Tieleman and Hinton 2012, lecture 6e)."""
    squares, momenta = slots
    _remember_squares(squares, gradients, recipe.second_momentum)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, recipe.epsilon)
    torch._foreach_mul_(momenta, recipe.momentum)
    torch._foreach_addcdiv_(momenta, gradients, roots)
    torch._foreach_add_(parameters, momenta, alpha=-rate)


def _remember_squares(squares: Tensors, gradients: Tensors, memory: float) -> None:
    torch._foreach_mul_(squares, memory)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - memory)


OPTIMISERS: dict[str, Rule] = {
    "sgd": Rule(slots=1, move=_sgd),
    "adam": Rule(slots=2, move=_adam),
    "rmsprop": Rule(slots=2, move=_rmsprop),
}
