"""Space files: what they may say, what they mean, and how errors speak."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.search.run import KNOWN, open_space
from mnet_search.spaces.schema import Choice, Range, SpaceFile
from mnet_search.spaces.space import Space, SpaceError, difference, load_space, make_space, si
from mnet_search.spaces.survey import survey
from mnet_search.spaces.yamlfile import Source

from processes import write_space

write = partial(write_space, name="space.yaml")

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "spaces").glob("*.yaml"))
TEXT = """\
family: mobilenet_v1
data: {name: digits}
parameters:
  width: [0.1, 0.2]
  resolution: [20, 24]
  depth: [shallow, full]
  block: [separable, inverted_residual]
  expand: {values: [2, 4], when: {block: inverted_residual}}
  stages.5.kernel: [3, 5]
objectives: {accuracy: maximize, latency_ms: minimize}
constraints: {mult_adds: {max: 4M}}
training: {epochs: 2}
search: {sampler: tpe, n_trials: 5}
"""


def space_of(**parameters: object) -> Space:
    values = {"family": "mobilenet_v1", "parameters": parameters}
    return make_space("test", values, Source("test")).for_data(classes=10, in_channels=1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_spaces_are_valid_and_hold_feasible_networks(path: Path) -> None:
    space = open_space(path, [])
    found = survey(space)
    assert space.file.description
    assert found.feasible


def test_the_scaling_space_is_the_grid_of_the_paper() -> None:
    space = open_space(ROOT / "spaces" / "mobilenet-scaling.yaml", [])
    assert space.file.search.sampler == "grid"
    assert space.n_codes == 4 * 4 * 2


def test_codes_networks_and_conditionals(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, TEXT)).for_data(classes=10, in_channels=1)
    codes = list(space.codes())
    assert len(codes) == space.n_codes == 2 * 2 * 2 * (1 + 2) * 2
    assert all(("expand" in code) == (code["block"] == "inverted_residual") for code in codes)
    found = survey(space)
    assert found.exact
    assert len(found.networks) == 48
    assert all(c.mult_adds <= 4e6 for _, c in found.feasible.values())
    assert costs(found.smallest).mult_adds == found.cost_range("mult_adds")[0]


def test_long_lists_in_large_spaces_are_sampled() -> None:
    widths = [round(0.1 + i / 1000, 4) for i in range(250)]
    found = survey(space_of(width=widths, resolution={"min": 20, "max": 60}), limit=50)
    assert not found.exact


def test_equal_networks_are_counted_once() -> None:
    assert len(survey(space_of(width=[0.5, 0.50001], resolution=32)).networks) == 1


def test_numbers_quantities_and_words_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    text = TEXT.replace("epochs: 2", "epochs: 2, learning_rate: 1e-4").replace("4M", "4000k")
    space = load_space(write(tmp_path, text))
    assert space.file.training.learning_rate == 1e-4
    assert space.file.constraints["mult_adds"].max == 4e6
    assert load_space(write(tmp_path, "description: no\n" + TEXT)).file.description == "no"


def test_set_overrides_values_and_per_stage_parameters(tmp_path: Path) -> None:
    changes = ["training.epochs=7", "parameters.stages.4.kernel=[3, 5]", "search.seed=3", "parameters.width=0.3"]
    space = load_space(write(tmp_path, TEXT), changes)
    assert (space.file.training.epochs, space.file.search.seed) == (7, 3)
    assert space.file.parameters["stages.4.kernel"] == Choice(values=[3, 5])
    assert space.file.parameters["width"] == Choice(values=[0.3])


def test_ranges() -> None:
    assert Range(min=1, max=4).grid() == [1, 2, 3, 4]
    assert Range(min=0.1, max=0.5, step=0.2).grid() == [0.1, 0.3, 0.5]
    assert Range(min=0.1, max=0.5).grid() is None
    space = space_of(width={"min": 0.1, "max": 1.0, "log": True}, resolution={"min": 20, "max": 40, "step": 4})
    assert space.n_codes is None
    drawn = [space.sample(random.Random(seed)) for seed in range(200)]
    assert all(0.1 <= p["width"] <= 1.0 and p["resolution"] % 4 == 0 for p in drawn)
    found = survey(space, limit=30)
    assert not found.exact
    with pytest.raises(SpaceError, match=r"parameters\.width: a continuous range cannot be enumerated; give it a step"):
        space.codes()


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=4, unique=True),
    blocks=st.lists(
        st.sampled_from(["separable", "separable_plain", "inverted_residual"]), min_size=1, max_size=3, unique=True
    ),
    expands=st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True),
    seed=st.integers(0, 100),
)
def test_counting_enumeration_and_sampling_agree(widths: list, blocks: list, expands: list, seed: int) -> None:
    parameters: dict = {"width": widths, "block": blocks, "resolution": 32}
    if "inverted_residual" in blocks:
        parameters["expand"] = {"values": expands, "when": {"block": "inverted_residual"}}
    space = space_of(**parameters)
    codes = list(space.codes())
    assert len(codes) == space.n_codes
    assert space.sample(random.Random(seed)) in codes


def test_the_hash_sees_what_matters_and_nothing_else(tmp_path: Path) -> None:
    base = load_space(write(tmp_path, TEXT))
    for same in (["search.n_trials=50"], ["resources.concurrency=2"], ["data.path=elsewhere"], ["description=other"]):
        assert load_space(write(tmp_path, TEXT), same).hash == base.hash
    for other in (
        ["training.epochs=3"],
        ["parameters.width=[0.1]"],
        ["data.split_seed=1"],
        ["constraints.mult_adds.max=3M"],
    ):
        assert load_space(write(tmp_path, TEXT), other).hash != base.hash
    changed = load_space(write(tmp_path, TEXT), ["training.epochs=3"])
    assert difference(base.identity, changed.identity) == ["training.epochs: 2 -> 3"]


def test_a_space_goes_through_json_unchanged(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, TEXT))
    again = make_space(space.name, json.loads(json.dumps(space.to_json())), Source("stored"))
    assert (again.hash, again.file) == (space.hash, space.file)


BAD = [
    (
        "family: mobilenet_v1",
        "family: mobilenet_v9",
        "space.yaml:1: family: unknown family 'mobilenet_v9'; did you mean mobilenet_v2? (known: mobilenet_v1",
    ),
    (
        "name: digits",
        "name: digit",
        "space.yaml:2: data.name: unknown name 'digit'; did you mean digits? (known: digits, cifar10",
    ),
    (
        "epochs: 2",
        "epoch: 2",
        "space.yaml:12: training.epoch: unknown key; did you mean epochs? (known: recipe, epochs",
    ),
    ("epochs: 2", "epochs: two", "space.yaml:12: training.epochs: input should be a valid integer, got 'two' (a text)"),
    ("epochs: 2", "epochs: 0", "space.yaml:12: training.epochs: input should be greater than or equal to 1, got 0"),
    (
        "epochs: 2",
        "epochs: 2, epochs: 3",
        "space.yaml:12: the key 'epochs' stands twice in one mapping; remove one of them",
    ),
    (
        "width: [0.1, 0.2]",
        "width: []",
        "space.yaml:4: parameters.width: the list of values is empty: the space would be empty",
    ),
    (
        "width: [0.1, 0.2]",
        "width: {min: 2, max: 1}",
        "space.yaml:4: parameters.width: max 1 is below min 2: the space would be empty",
    ),
    (
        "width: [0.1, 0.2]",
        "width: {low: 2}",
        "space.yaml:4: parameters.width: needs `values`, or `min` and `max`; it has: low",
    ),
    (
        "width: [0.1, 0.2]",
        "width: {min: 1, mx: 2}",
        "space.yaml:4: parameters.width.mx: unknown key; did you mean max?",
    ),
    ("width: [0.1, 0.2]", "width: [0.1, 0.1]", "space.yaml:4: parameters.width: a value stands twice"),
    (
        "width: [0.1, 0.2]",
        "width: [0.1, 0.001]",
        "space.yaml:4: parameters.width: width=0.001 is not possible: it leaves 32 channels with none",
    ),
    (
        "width: [0.1, 0.2]",
        "widht: [0.1]",
        "space.yaml:4: parameters.widht: family mobilenet_v1 has no option 'widht'; did you mean width?",
    ),
    (
        "width: [0.1, 0.2]",
        "classes: [10]",
        "space.yaml:4: parameters.classes: is decided by the data, not searched; remove it",
    ),
    ("resolution: [20,", "resolution: [8,", "space.yaml:5: parameters.resolution: resolution=8 is not possible"),
    (
        "block: [separable,",
        "block: [seperable,",
        "space.yaml:7: parameters.block: unknown block 'seperable'; did you mean separable?",
    ),
    (
        ", when: {block: inverted_residual}",
        "",
        "space.yaml:8: parameters.expand: expand=2 is not possible: no block of this network takes it",
    ),
    (
        "when: {block:",
        "when: {blok:",
        "space.yaml:8: parameters.expand.when.blok: no such parameter; did you mean block?",
    ),
    (
        "when: {block: inverted_residual}",
        "when: {block: conv}",
        "space.yaml:8: parameters.expand.when.block: block never is 'conv'",
    ),
    (
        "when: {block: inverted_residual}",
        "when: {expand: 2}",
        "space.yaml:8: parameters.expand.when: these conditions depend on each other in a circle",
    ),
    ("stages.5.kernel", "stages.9.kernel", "stages 1 to 5"),
    (
        "stages.5.kernel",
        "stages.5.krnel",
        "space.yaml:9: parameters.stages.5.krnel: family mobilenet_v1 has no option 'stages.5.krnel'",
    ),
    (
        "accuracy: maximize",
        "acuracy: maximize",
        "space.yaml:10: objectives.acuracy: unknown objective 'acuracy'; did you mean accuracy? (known: accuracy,",
    ),
    (
        "accuracy: maximize",
        "accuracy: up",
        "space.yaml:10: objectives.accuracy: input should be 'maximize' or 'minimize', got 'up' (a text)",
    ),
    (
        "max: 4M",
        "max: 10k",
        "space.yaml:11: constraints.mult_adds: none of the 48 networks has mult_adds within 10 k: the smallest has",
    ),
    (
        "max: 4M",
        "min: 4G",
        "space.yaml:11: constraints.mult_adds: none of the 48 networks has mult_adds of at least 4 G: the largest has",
    ),
    (
        "max: 4M",
        "max: 4X",
        "space.yaml:11: constraints.mult_adds.max: '4X' is not a quantity; write a number, with k, M or G behind it",
    ),
    (
        "mult_adds: {",
        "latency: {",
        "space.yaml:11: constraints.latency: unknown key (known: params, mult_adds, activations, peak_activations",
    ),
    (
        "sampler: tpe",
        "sampler: tpr",
        "space.yaml:13: search.sampler: unknown sampler 'tpr'; did you mean tpe? "
        "(known: pareto, tpe, nsga2, nsga3, evolution, random, grid)",
    ),
    (
        "sampler: tpe",
        "scheduler: moash",
        "space.yaml:13: search.scheduler: unknown scheduler 'moash'; did you mean moasha? "
        "(known: moasha, hyperband, median, none)",
    ),
    ("training: {", "trainin: {", "space.yaml:12: trainin: unknown key; did you mean training?"),
    ("data: {name: digits}", "data: [", "not valid YAML"),
    ("family: mobilenet_v1\n", "", "space.yaml: family: name one (family: mobilenet_v1), or several to search over"),
    (TEXT, "- a list\n", "space.yaml: expected keys and values (`family: mobilenet_v1`), found a list"),
]


@pytest.mark.parametrize(
    ("old", "new", "text"), BAD, ids=[new.strip()[:40] or f"without {old.strip()[:20]}" for old, new, _ in BAD]
)
def test_errors_name_file_line_key_and_remedy(tmp_path: Path, old: str, new: str, text: str) -> None:
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(MnetError) as caught:
        survey(load_space(path, (), KNOWN).for_data(classes=10, in_channels=1))
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("training.epochs=x", "--set training.epochs: input should be a valid integer, got 'x'"),
        ("trainig.epochs=1", "--set trainig.epochs: "),
        ("training.epochs", "--set training.epochs: write PATH=VALUE"),
        ("family.x=1", "--set family.x: family is a text, not a mapping"),
    ],
)
def test_errors_in_overrides_name_the_override(tmp_path: Path, override: str, text: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path, TEXT), [override])
    assert text in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"nothing\.yaml: no such file"):
        load_space(tmp_path / "nothing.yaml")


def test_the_schema_describes_what_is_accepted() -> None:
    schema = SpaceFile.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"parameters"}  # a family may stand among them
    assert "description" in schema["properties"]["parameters"]


def test_si_has_three_digits_at_most() -> None:
    assert [si(x) for x in (12, 999, 4_231_976, 568_740_352, 999_600, 1e9)] == [
        "12",
        "999",
        "4.23 M",
        "569 M",
        "1 M",
        "1 G",
    ]
