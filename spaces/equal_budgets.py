"""Networks that spend the same budget in different ways: thinner, shallower, at lower resolution, of other blocks.

The tables 4 and 5 of the MobileNetV1 paper (arXiv 1704.04861) as a question that can be asked of any space. Costs are
exact sums over a network's description, so each way is solved for before anything is trained, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.tables import nearest
from mnet_search.spaces.schema import COST_NAMES, Parameter, Range, Value, conditions
from mnet_search.spaces.settings import is_setting
from mnet_search.spaces.space import Params, Space, make_space, si

LEAST = 0.05  # of the largest width or depth
STEPS = 0.05  # between depths that are looked at: a network has few blocks
DIGITS = 3  # of a width
TOGETHER = "compound"
# How the depth, width and resolution of a network shrink together (EfficientNet, arXiv 1905.11946, section 3.3).
COMPOUND = {"depth": 1.2, "width": 1.1, "resolution": 1.15}


@dataclass(frozen=True)
class Way:
    """One way to spend a budget: what was changed, the whole assignment, and what the network costs."""

    name: str
    params: Mapping[str, Value]
    arch_id: str
    cost: int
    miss: float  # cost / budget - 1


@dataclass(frozen=True)
class EqualBudget:
    """The ways that meet a budget; `missed` says of each of the others why it does not."""

    cost_name: str
    budget: float
    base: Mapping[str, Value]
    base_cost: int
    ways: tuple[Way, ...]
    missed: tuple[str, ...]


def solve(space: Space, cost: str, budget: float, tolerance: float, knobs: Sequence[str]) -> EqualBudget:
    """For each knob the network that spends `budget` of a cost within `tolerance` (a share), all else as in the base.

    The base has width, depth and resolution at their largest value, and every other parameter at its first. Those three
    may take any value below; `compound` lowers them together; of any other parameter each further value is a way, with
    the width that meets the budget. Raises MnetError where fewer than two ways meet it.
    """
    _check(space, cost, budget, tolerance, knobs)
    base = _base(space)
    look = _Looked(space, cost, budget)
    base_cost = look.cost(base)
    if base_cost < budget * (1 - tolerance):
        raise MnetError(
            f"--{cost.replace('_', '-')} {budget:,.0f}: the network that knobs lower has {base_cost:,} "
            f"({_words(base, {})}); ask for less, or raise the largest values of the space"
        )
    ways: list[Way] = []
    missed: list[str] = []
    near: list[Way] = []
    for name, candidates in _questions(space, base, knobs, look):
        if isinstance(candidates, str):
            missed.append(f"{name}: {candidates}")
            continue
        best = min(candidates, key=lambda params: abs(look.miss(params)), default=None)
        if best is None:
            missed.append(f"{name}: no such network can be built")
            continue
        arch = space.arch(best)
        way = Way(name, best, arch.id, look.cost(best), look.miss(best))
        same = next((other for other in ways if other.arch_id == arch.id), None)
        too_large = space.violation(costs(arch))
        if abs(way.miss) > tolerance:
            near.append(way)
            missed.append(f"{name}: the nearest has {way.cost:,}, {way.miss:+.1%} ({_words(best, base)})")
        elif too_large:
            missed.append(f"{name}: {too_large} ({_words(best, base)})")
        elif same:
            missed.append(f"{name}: the same network as {same.name}")
        else:
            ways.append(way)
    if len(ways) < 2:
        met = f"only {ways[0].name} meets it" if ways else "no knob meets it"
        raise MnetError(
            f"{budget:,.0f} {cost} within {tolerance:.1%}: {met}, and a comparison needs two; {'; '.join(missed)}; try "
            f"{_instead(cost, near)}a wider --tolerance or more --knobs"
        )
    return EqualBudget(cost, budget, base, base_cost, tuple(ways), tuple(missed))


def _instead(cost: str, near: Sequence[Way]) -> str:
    """The budget that the knob that missed by least would meet."""
    if not near:
        return "another budget, "
    nearest_way = min(near, key=lambda way: abs(way.miss))
    return f"--{cost.replace('_', '-')} {nearest_way.cost}, which {nearest_way.name} meets, "


def space_of(space: Space, found: EqualBudget, name: str, repeats: int) -> Space:
    """The space that holds the solved networks and no others, each trained with seeds 0, 1, ... `repeats` - 1 beyond
    the file's: runs of the same seed see the same images in the same order.
    """
    values = {key: value for key, value in space.to_json().items() if value is not None}
    parameters = {}
    for parameter in space.parameters:
        seen = [way.params[parameter] for way in found.ways if parameter in way.params]
        if seen:
            parameters[parameter] = {**values["parameters"][parameter], "values": list(dict.fromkeys(seen))}
            for key in ("min", "max", "step", "log"):
                parameters[parameter].pop(key, None)
    search = {**values["search"], "sampler": "grid", "scheduler": "none", "repeats": repeats, "n_trials": None}
    budget = f"{found.cost_name} {si(found.budget)}"
    values |= {
        "description": f"{len(found.ways)} ways to spend {budget}, of the space {space.name}: "
        + ", ".join(way.name for way in found.ways),
        "parameters": parameters,
        "networks": [dict(way.params) for way in found.ways],
        "search": {key: value for key, value in search.items() if value is not None},
    }
    return make_space(name, values, space.source)


class _Looked:
    """What networks cost, each looked at once; those that cannot be built cost nothing and miss by everything."""

    def __init__(self, space: Space, cost: str, budget: float):
        self._space, self._cost, self._budget = space, cost, budget
        self._known: dict[tuple[tuple[str, Value], ...], int] = {}

    def cost(self, params: Mapping[str, Value]) -> int:
        key = tuple(params.items())
        if key not in self._known:
            try:
                self._known[key] = int(getattr(costs(self._space.arch(params)), self._cost))
            except MnetError:
                self._known[key] = 0
        return self._known[key]

    def miss(self, params: Mapping[str, Value]) -> float:
        return self.cost(params) / self._budget - 1


def _questions(
    space: Space, base: Params, knobs: Sequence[str], look: _Looked
) -> Iterator[tuple[str, Iterable[Params] | str]]:
    """Each way by its name, with the networks among which its nearest to the budget is, or why there is none."""
    for knob in knobs:
        needed = list(COMPOUND) if knob == TOGETHER else [knob]
        absent = next((name for name in needed if name not in base), None)
        if absent is not None:
            asks = " ".join(f"{other}={_or(values)}" for other, values in conditions(space.parameters[absent]))
            what = "it" if absent == knob else absent
            yield knob, f"{what} exists only with {asks}, and the network that knobs lower has none"
        elif knob == TOGETHER:
            yield knob, _together(base, look)
        elif knob in COMPOUND:
            yield knob, _lowered(space, base, knob, look)
        else:
            for value in space.values(knob):
                if value != base[knob]:
                    changed = _base(space, {**base, knob: value} if knob != "family" else {knob: value})
                    way = f"{knob}={value}"
                    if "width" in changed:
                        yield way, _of_widths(changed, float(changed["width"]), look)
                    else:
                        yield way, "it has no width by which to meet the budget"


def _or(values: Sequence[Value]) -> str:
    return " or ".join(map(str, values))


def _lowered(space: Space, base: Params, knob: str, look: _Looked) -> list[Params]:
    """The networks with one knob below its largest value that matter: all, or those of width around the crossing."""
    if knob == "width":
        return _of_widths(base, float(base[knob]), look)
    if knob == "resolution":
        values: list[Value] = list(range(1, int(base[knob]) + 1))
    else:
        words = [value for value in space.values("depth") if isinstance(value, str)]
        values = [*words, *_steps(1.0 if isinstance(base[knob], str) else float(base[knob]))]
    return [params for value in values if look.cost(params := {**base, knob: value})]


def _together(base: Params, look: _Looked) -> list[Params]:
    """Width, depth and resolution lowered by one coefficient, and the width alone by what rounding leaves."""

    def at(coefficient: float) -> Params:
        changed = dict(base)
        for knob, factor in COMPOUND.items():
            value = 1.0 if isinstance(base[knob], str) else float(base[knob])
            value *= factor**-coefficient
            changed[knob] = round(value) if knob == "resolution" else round(value, DIGITS)
        return changed

    low, high = 0.0, 40.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if look.miss(at(middle)) > 0 else (low, middle)
    found = []
    for coefficient in (low, high):
        shape = at(coefficient)
        widest = float(shape["width"]) * 1.2
        found += _of_widths(shape, widest, look)
    return found


def _of_widths(base: Params, most: float, look: _Looked) -> list[Params]:
    """The networks of widths near the one at which the cost, which grows in steps, crosses the budget."""
    low, high = LEAST * most, most
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if look.miss({**base, "width": middle}) > 0 else (middle, high)
    near = (round(high + place * 10**-DIGITS, DIGITS) for place in range(-10, 11))
    widths = [width for width in near if LEAST * most <= width <= most]
    return [params for width in widths if look.cost(params := {**base, "width": width})]


def _steps(most: float) -> list[Value]:
    count = round(most / STEPS)
    return [round(most * (i + 1) / count, DIGITS) for i in range(count)]


def _base(space: Space, pinned: Mapping[str, Value] | None = None) -> Params:
    """Width, depth and resolution at their largest, every other parameter that exists at its first value, or pinned."""
    chosen: Params = {}
    for name, parameter in space.parameters.items():
        if space.active(parameter, chosen):
            chosen[name] = pinned[name] if pinned and name in pinned else _first(name, parameter)
    return chosen


def _first(name: str, parameter: Parameter) -> Value:
    grid = parameter.grid()
    if name in COMPOUND and isinstance(parameter, Range):
        return parameter.max
    if name == "depth" and grid and "full" in grid:
        return "full"
    numbers = [v for v in grid or [] if isinstance(v, int | float) and not isinstance(v, bool)]
    if name in COMPOUND and numbers:
        return max(numbers)
    return grid[0] if grid else parameter.min if isinstance(parameter, Range) else ""


def _check(space: Space, cost: str, budget: float, tolerance: float, knobs: Sequence[str]) -> None:
    if cost not in COST_NAMES:
        raise MnetError(f"{cost!r} is no cost{nearest(cost, COST_NAMES)} (known: {', '.join(COST_NAMES)})")
    if not budget > 0:
        raise MnetError(f"a budget of {budget:g} {cost}: write a number above 0, such as 5M")
    if not 0 < tolerance < 1:
        raise MnetError(f"--tolerance {tolerance:g}: write a share such as 2% or 0.02, above 0 and below 1")
    if not knobs:
        raise MnetError("--knobs: name one or more, such as width,depth,resolution")
    if space.file.scalings or space.listed:
        raise MnetError(
            f"{space.name}: a space with scalings, or one that lists its networks, has no knobs to turn; give a "
            "space of plain parameters"
        )
    known = [*space.parameters, *([TOGETHER] if set(COMPOUND) <= space.parameters.keys() else [])]
    for knob in knobs:
        if knob == TOGETHER and knob not in known:
            lacking = [name for name in COMPOUND if name not in space.parameters]
            raise MnetError(
                f"--knobs compound: it lowers width, depth and resolution, and the space has no {lacking[0]}"
            )
        if is_setting(knob):
            raise MnetError(f"--knobs {knob}: it changes how a network is trained and not what it costs; leave it out")
        if knob not in known:
            raise MnetError(
                f"--knobs {knob}: no parameter of the space{nearest(knob, known)} (it has: {', '.join(known)})"
            )
        words = [v for v in space.parameters[knob].grid() or [] if isinstance(v, str)] if knob in COMPOUND else []
        if knob != "depth" and words:
            raise MnetError(f"--knobs {knob}: it may be {words[0]!r}, which is no number that can be lowered")
    others = [knob for knob in knobs if knob not in (*COMPOUND, TOGETHER)]
    if others and "width" not in space.parameters:
        raise MnetError(f"--knobs {others[0]}: the width meets the budget there, and the space has no parameter width")
    for knob in others:
        space.values(knob)  # raises where it is continuous


def _words(params: Mapping[str, Value], base: Mapping[str, Value]) -> str:
    return " ".join(f"{name}={value}" for name, value in params.items() if base.get(name) != value) or "unchanged"
