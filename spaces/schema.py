"""The schema of a space file: what a YAML may say, as strict pydantic models. Unknown keys and wrong types are
errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

Value: TypeAlias = bool | int | float | str
COST_NAMES = ("params", "mult_adds", "activations", "peak_activations", "weight_bytes")
_SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


class Strict(BaseModel):
    """Frozen; refuses unknown keys and does not convert types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def quantity(value: Any) -> Any:
    """50M -> 50_000_000; numbers pass."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMG]?)", value.strip())
        if not found:
            raise ValueError(f"{value!r} is not a quantity; write a number, with k, M or G behind it if you like (50M)")
        return float(found[1]) * _SUFFIXES.get(found[2], 1.0)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[
    float, BeforeValidator(quantity), WithJsonSchema({"type": ["number", "string"], "examples": ["50M"]})
]


def _number(value: Any) -> Any:
    """A whole number where any number will do."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _one_value(value: Any) -> Any:
    """A list or mapping where one value belongs, said in one sentence instead of once for each kind of value."""
    if isinstance(value, list | dict) or value is None:
        raise ValueError(f"one value is expected here (a number, a word, true or false), got {value!r}")
    return value


OneValue = Annotated[Value, BeforeValidator(_one_value)]


def _function(value: str) -> str:
    if not re.fullmatch(r"[\w.]+:[\w.]+", value):
        raise ValueError(f"write package.module:function, got {value!r}")
    return value


Factor = Annotated[float, BeforeValidator(_number), Field(gt=0, le=100)]


class Choice(Strict):
    """One of a list of values."""

    values: Annotated[list[OneValue], Field(description="the values to choose from")]
    when: dict[str, Value | list[Value]] = Field(
        default={}, description="other parameters and the values under which this one exists"
    )

    @model_validator(mode="after")
    def _check(self) -> Choice:
        if not self.values:
            raise ValueError("the list of values is empty: the space would be empty")
        if len({(type(v).__name__, v) for v in self.values}) < len(self.values):
            raise ValueError(f"a value stands twice in {self.values}")
        return self

    def grid(self) -> list[Value] | None:
        """Every value; None where there are infinitely many."""
        return list(self.values)


class Range(Strict):
    """A number between min and max: whole where both are whole, in steps where a step is given, else continuous."""

    min: int | float
    max: int | float
    step: int | float | None = Field(default=None, description="distance between neighbours")
    log: bool = Field(default=False, description="sample evenly in the logarithm")
    when: dict[str, Value | list[Value]] = Field(
        default={}, description="other parameters and the values under which this one exists"
    )

    @model_validator(mode="after")
    def _check(self) -> Range:
        if self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}: the space would be empty")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"a step is above 0, got {self.step}")
        if self.step is not None and self.log:
            raise ValueError("a step cannot be combined with log; leave one of them out")
        if self.log and self.min <= 0:
            raise ValueError(f"a log range starts above 0, min is {self.min}")
        step = self.step if self.step is not None else (1 if self.whole else None)
        if step is not None and not self.log and (self.max - self.min) / step > 100_000:
            raise ValueError("more than 100,000 values; take a larger step, or a continuous range")
        return self

    @property
    def whole(self) -> bool:
        return all(isinstance(x, int) for x in (self.min, self.max, self.step if self.step is not None else 1))

    def grid(self) -> list[Value] | None:
        """Every value; None where there are infinitely many, or too many to list."""
        if self.max - self.min > 100_000 and self.step is None:
            return None
        step = self.step if self.step is not None else (1 if self.whole else None)
        if step is None:
            return [self.min] if self.min == self.max else None
        count = math.floor((self.max - self.min) / step + 1e-9) + 1
        return [self.min + i * step if self.whole else round(self.min + i * step, 10) for i in range(count)]


Parameter: TypeAlias = Choice | Range


def parse_parameter(value: Any) -> Any:
    """The short forms of a parameter: a list is a choice, a single value a choice of one; a mapping is told apart by
    its keys.
    """
    if isinstance(value, Choice | Range):
        return value
    if isinstance(value, list):
        return Choice(values=value)
    if isinstance(value, dict):
        if "values" in value:
            return Choice.model_validate(value)
        if "min" in value or "max" in value:
            return Range.model_validate(value)
        raise ValueError(f"needs `values`, or `min` and `max`; it has: {', '.join(map(str, value)) or 'nothing'}")
    if value is None:
        raise ValueError("has no value; write a number, a word, a list or {min, max, step}")
    return Choice(values=[value])


class Data(Strict):
    """Which images, and how they are split. The search never sees the test part."""

    name: str = Field(default="digits", description="a dataset of `mnet-search doctor`'s list, or package.module:name")
    path: str | None = Field(default=None, description="folder or file with the images")
    download: bool = False
    validation: float = Field(default=0.2, description="share of the images outside the test part that validates")
    test: float = Field(
        default=0.2, description="share held back for the test, where the source has no test part of its own"
    )
    split_seed: int = Field(default=0, ge=0, lt=2**31)
    train_limit: int | None = Field(default=None, ge=1, description="train on at most so many images")
    train_fraction: float | None = Field(default=None, gt=0, le=1, description="share of the training images used")
    flip: bool | None = Field(
        default=None, description="whether images may be mirrored; default: what the dataset says"
    )
    stream: bool | None = Field(
        default=None, description="decode pictures while training; default: where they would fill half of the memory"
    )

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, values: Any) -> Any:
        """`limit` is `train_limit` in configs and studies from before 0.2."""
        if isinstance(values, dict) and "limit" in values and "train_limit" not in values:
            values = {("train_limit" if key == "limit" else key): value for key, value in values.items()}
        return values


class Training(Strict):
    """How each network is trained. What is left out, or null, is the recipe's own; see docs/training.md."""

    recipe: str = "default"
    epochs: int = Field(default=8, ge=1, le=1_000_000)
    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    teacher: str | None = Field(default=None, description="a checkpoint to learn from, or torchvision:NAME")
    learning_rate: float | None = Field(default=None, gt=0, description="peak learning rate for this batch size")
    optimiser: str | None = Field(default=None, description="sgd, adam or rmsprop")
    schedule: str | None = Field(default=None, description="one_cycle, constant or exponential")
    warmup: float | None = Field(default=None, description="share of the steps that climb to the peak (one_cycle)")
    anneal: str | None = Field(default=None, description="cosine or linear (one_cycle)")
    decay_rate: float | None = Field(default=None, description="factor of the learning rate (exponential)")
    decay_epochs: float | None = Field(default=None, description="epochs between two such factors (exponential)")
    momentum: float | None = None
    second_momentum: float | None = Field(default=None, description="memory of squared gradients (adam, rmsprop)")
    epsilon: float | None = None
    weight_decay: float | None = None
    decayed: str | None = Field(default=None, description="weights, linear or all")
    clip_norm: float | None = Field(default=None, description="bound on the norm of the gradient; 0 is off")
    label_smoothing: float | None = None
    crop: float | None = Field(default=None, description="padding of the random crop, as a share of the resolution")
    flip: bool | None = Field(default=None, description="mirror half of the images, where the data allow it")
    cutout: float | None = Field(default=None, description="side of the blanked square, as a share of the resolution")
    mixup: float | None = Field(default=None, description="alpha of the mixing weights; 0 is off")
    average: float | None = Field(default=None, description="memory of the averaged weights (EMA); 0 is off")
    recalibrate: bool | None = Field(default=None, description="batch-norm statistics anew before validation")
    teacher_weight: float | None = None
    teacher_temperature: float | None = None


class SearchOptions(Strict):
    """How networks are chosen."""

    sampler: str = "pareto"
    scheduler: str | None = Field(
        default=None, description="which trials are stopped early; default: moasha, and none for the sampler grid"
    )
    eta: float = Field(default=3.0, gt=1, le=100, description="at a rung one of so many trials goes on")
    first_rung: int | None = Field(
        default=None, ge=1, description="epochs before a trial is judged; default: so that there are two rungs"
    )
    n_trials: int | None = Field(
        default=None, ge=1, description="finished trials in total; default: 30, or the whole grid"
    )
    seed: int = Field(default=0, ge=0, lt=2**31)
    repeats: Annotated[int, Field(ge=1, le=100)] | Literal["adaptive"] = Field(
        default=1, description="runs of each network, with other seeds; adaptive: of those that may be on the front"
    )
    warm_start: str | None = Field(default=None, description="a study of the same space whose trials teach the sampler")
    scores: list[str] = Field(default=[], description="zero-cost scores that the pareto sampler learns from")
    trial_timeout_s: float | None = Field(default=None, gt=0, description="seconds after which a trial has failed")


class Resources(Strict):
    """What a trial may use; `auto` decides on the machine."""

    cpus_per_trial: int = Field(default=1, ge=1)
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    concurrency: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool | Literal["auto"] = "auto"


class Bound(Strict):
    """A budget: limits on a cost that is known before training."""

    max: Quantity | None = None
    min: Quantity | None = None

    @model_validator(mode="after")
    def _check(self) -> Bound:
        if self.max is None and self.min is None:
            raise ValueError("a constraint needs max or min")
        if self.max is not None and self.min is not None and self.max < self.min:
            raise ValueError(f"max {self.max:g} is below min {self.min:g}")
        return self


class SpaceFile(Strict):
    """A space of networks with its objectives, budgets, data and the way to search it."""

    description: str = Field(default="", description="what this space tests, and on what it builds")
    family: Annotated[
        str | None,
        WithJsonSchema({"type": ["string", "array"], "items": {"type": "string"}}),
    ] = Field(
        default=None,
        description="a family of networks, torchvision:NAME or package.module:name; a list is searched over",
    )
    blocks: dict[str, dict[str, OneValue]] = Field(
        default={},
        description="names for blocks with their options, to be used as values of block parameters: "
        "{ir5: {block: inverted_residual, kernel: 5}}",
    )
    data: Data = Data()
    parameters: dict[
        str,
        Annotated[
            Parameter,
            BeforeValidator(parse_parameter),
            WithJsonSchema({"description": "a list, a single value, {values, when} or {min, max, step|log, when}"}),
        ],
    ] = Field(description="options of the family and the values to search; stages.N.OPTION reaches one stage")
    scalings: dict[str, Annotated[dict[str, Factor], Field(min_length=1)]] = Field(
        default={},
        description="names for factors of parameters, to be used as values of the parameter `scaling`; taken to "
        "the power of the parameter `coefficient`: {compound: {depth: 1.2, width: 1.1}}",
    )
    networks: Annotated[list[dict[str, OneValue]], Field(min_length=1)] | None = Field(
        default=None,
        description="only these networks: for each the values of the parameters that have more than one",
    )
    evaluate: Annotated[str, AfterValidator(_function)] | None = Field(
        default=None,
        description="package.module:function that evaluates a network in place of training; nothing of `data` is read",
    )
    objectives: dict[str, Literal["maximize", "minimize"]] = {
        "accuracy": "maximize",
        "latency_ms": "minimize",
        "params": "minimize",
    }
    constraints: dict[Literal["params", "mult_adds", "activations", "peak_activations", "weight_bytes"], Bound] = {}
    training: Training = Training()
    search: SearchOptions = SearchOptions()
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _family_choice(cls, values: Any) -> Any:
        """`family: [a, b]` is the parameter `family`, so that conditions can speak of it."""
        if isinstance(values, dict) and isinstance(values.get("family"), dict):
            raise ValueError(f"family: a name, or a list of names, got {values['family']!r}")
        if isinstance(values, dict) and isinstance(values.get("family"), list):
            parameters = values.get("parameters") or {}
            values = {**values, "family": None, "parameters": {"family": values["family"], **parameters}}
        return values

    @model_validator(mode="after")
    def _check(self) -> SpaceFile:
        if (self.family is None) == ("family" not in self.parameters):
            raise ValueError("family: name one (family: mobilenet_v1), or several to search over")
        for name, variant in self.blocks.items():
            if not isinstance(variant.get("block"), str):
                has = ", ".join(variant) or "nothing"
                raise ValueError(f"blocks.{name}: needs `block`, the block that it is a form of; it has: {has}")
        if not self.objectives:
            raise ValueError("objectives: at least one is needed, for example accuracy: maximize")
        for name, direction in self.objectives.items():
            bound = self.constraints.get(name)  # type: ignore[call-overload]  # a name that is no cost has none
            if direction == "maximize" and bound is not None and bound.max is not None:
                raise ValueError(
                    f"objectives.{name}: it is to be maximized, and constraints.{name} bounds it by {bound.max:g}; "
                    "minimize it, or remove one of the two"
                )
        return self


def conditions(parameter: Parameter) -> Iterator[tuple[str, list[Value]]]:
    """The conditions of a parameter as (other parameter, values under which this one exists)."""
    for name, values in parameter.when.items():
        yield name, values if isinstance(values, list) else [values]
