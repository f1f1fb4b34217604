"""Parameters that set a key of `data` or `training`: what they mean, what is one candidate, and how errors speak."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.published_cifar import SYSTEMS
from mnet_search.search.run import KNOWN, fit_to_data, open_space
from mnet_search.spaces.schema import Data, Training
from mnet_search.spaces.space import Space, SpaceError, difference, load_space, make_space
from mnet_search.spaces.survey import survey
from mnet_search.spaces.yamlfile import Source

from processes import write_space

write = partial(write_space, name="space.yaml")

CLASSICS = Path(__file__).parents[1] / "spaces" / "classics.yaml"
TEXT = """\
family: [mobilenet_v1, lenet5]
data: {name: digits, train_limit: 900}
parameters:
  resolution: [20, 32]
  width: {values: [0.25, 0.5], when: {family: mobilenet_v1, training.recipe: default}}
  training.recipe: [default, adam_plain]
  training.batch_size: {values: [32, 64], when: {training.recipe: adam_plain, family: [lenet5]}}
  training.epochs: {min: 2, max: 4}
  data.train_limit: {values: [500], when: {resolution: 20}}
training: {recipe: paper, epochs: 9, batch_size: 50, momentum: 0.8}
"""


def space_of(**parameters: object) -> Space:
    values = {"family": "lenet5", "parameters": {"resolution": 32, **parameters}}
    return make_space("test", values, Source("test")).for_data(classes=10, in_channels=1)


# ---------------------------------------------------------------- meaning


def test_parameters_set_keys_of_data_and_training_and_the_file_says_the_rest(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, TEXT), (), KNOWN).for_data(classes=10, in_channels=1)
    assert space.settings.names == ("training.recipe", "training.batch_size", "training.epochs", "data.train_limit")
    code: dict[str, Any] = {"family": "lenet5", "resolution": 20, "training.recipe": "adam_plain", "training.epochs": 3}
    code |= {"training.batch_size": 64, "data.train_limit": 500}
    assert space.training_of(code) == Training(recipe="adam_plain", epochs=3, batch_size=64, momentum=0.8)
    assert space.data_of(code) == Data(name="digits", train_limit=500)
    assert space.arch(code).options["resolution"] == 20
    bare = {"family": "lenet5", "resolution": 32}
    assert space.training_of(bare) == space.file.training  # a key whose parameter does not exist is the file's
    assert space.data_of(bare) is space.file.data
    assert [data.train_limit for data in space.data_settings] == [500, 900]


def test_conditions_hold_between_settings_and_options_in_both_directions(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, TEXT), (), KNOWN)
    codes = list(space.codes())
    assert len(codes) == space.n_codes == 2 * 3 * ((2 + 1) + (1 + 2))
    for code in codes:
        plain = code["training.recipe"] == "adam_plain"
        assert ("width" in code) == (code["family"] == "mobilenet_v1" and not plain)
        assert ("training.batch_size" in code) == (code["family"] == "lenet5" and plain)
        assert ("data.train_limit" in code) == (code["resolution"] == 20)


def test_equal_networks_with_equal_settings_are_one_candidate() -> None:
    space = space_of(**{"training.recipe": ["default", "adam_plain"], "dropout": [0.0, 0.25]})
    found = survey(space)
    assert (len(found.networks), len(found.distinct())) == (4, 2)
    assert all(key == space.key(params) for key, (params, _) in found.networks.items())
    plain, other = ({"resolution": 32, "training.recipe": r, "dropout": 0.0} for r in ("default", "adam_plain"))
    (first, of_first), (second, of_second) = (space.key(code).split("-") for code in (plain, other))
    assert first == second == space.arch(plain).id
    assert of_first != of_second
    assert len(of_first) == 12
    assert int(of_first, 16) >= 0
    # the file's recipe, named and not named
    named = {"values": ["default"], "when": {"dropout": [0.0]}}
    twice = space_of(**{"dropout": [0.0, 0.25], "stem_stride": 1, "training.recipe": named})
    assert twice.settings.id({"training.recipe": "default"}) == twice.settings.id({})
    # 1 and 1.0 are one momentum
    assert len(survey(space_of(**{"training.weight_decay": [1, 1.0, 2]})).networks) == 2


def test_a_space_without_settings_has_the_keys_that_it_had() -> None:
    space = space_of(dropout=[0.0, 0.25])
    assert list(survey(space).networks) == [space.arch(code).id for code in space.codes()]
    assert space.data_settings == [space.file.data]


def test_where_the_images_lie_is_part_of_a_candidate_only_as_a_parameter() -> None:
    here = space_of(**{"data.path": ["a.npz", "b.npz"], "data.download": [True, False]})
    assert len(survey(here).networks) == 2
    assert len(here.data_settings) == 4
    text = {"family": "lenet5", "parameters": {"resolution": 32, "training.epochs": [1, 2]}}
    ids = [make_space("x", text | {"data": {"path": path}}, Source("x")).settings.id({}) for path in ("a", "b")]
    assert ids[0] == ids[1]


def test_each_setting_of_the_data_decides_the_ends_of_its_networks(tmp_path: Path) -> None:
    text = "family: lenet5\nparameters: {resolution: 32, data.name: [digits, cifar10, cifar100]}\n"
    space = fit_to_data(load_space(write(tmp_path, text), (), KNOWN))
    ends = {c["data.name"]: space.arch(c).options for c in space.codes()}
    assert [(o["in_channels"], o["classes"]) for o in ends.values()] == [(1, 10), (3, 10), (3, 100)]
    assert len(survey(space).distinct()) == 3


@settings(max_examples=30, deadline=None)
@given(
    recipes=st.lists(st.sampled_from(["default", "paper", "adam_plain"]), min_size=1, max_size=3, unique=True),
    limits=st.lists(st.integers(100, 900), min_size=1, max_size=3, unique=True),
    dropouts=st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=2, unique=True),
    seed=st.integers(0, 100),
)
def test_counting_enumeration_and_keys_agree(recipes: list, limits: list, dropouts: list, seed: int) -> None:
    limit = {"values": limits, "when": {"training.recipe": recipes[0]}}
    space = space_of(**{"dropout": dropouts, "training.recipe": recipes, "data.train_limit": limit})
    codes = list(space.codes())
    assert len(codes) == space.n_codes == len(dropouts) * (len(limits) + len(recipes) - 1)
    assert len({space.key(code) for code in codes}) == len(codes)
    assert space.sample(random.Random(seed)) in codes
    assert {space.data_of(code) for code in codes} == set(space.data_settings)


def test_ranges_of_settings_are_sampled() -> None:
    space = space_of(**{"training.learning_rate": {"min": 1e-3, "max": 1e-1, "log": True}})
    found = survey(space, limit=20)
    rates = [space.training_of(params).learning_rate for params, _ in found.networks.values()]
    assert (len(found.distinct()), found.exact) == (1, False)
    assert all(rate is not None and 1e-3 <= rate <= 1e-1 for rate in rates)


# ---------------------------------------------------------------- errors

BAD = [
    (
        "training.epochs: {",
        "training.epoch: {",
        "space.yaml:8: parameters.training.epoch: unknown key of training; did you mean epochs? (known: recipe, epochs",
    ),
    (
        "training.epochs: {",
        "trainig.epochs: {",
        "parameters.trainig.epochs: no such parameter; did you mean training.e",
    ),
    (
        "training.epochs: {",
        "epochs: {",
        "parameters.epochs: family mobilenet_v1 has no option 'epochs'",
    ),
    ("training.epochs: {", "epochs: {", "to search over how networks are trained, write training.epochs"),
    ("training.epochs: {", "search.seed: {", "parameters.search.seed: search holds for a whole study; write it under"),
    (
        "{min: 2, max: 4}",
        "{min: 0, max: 4}",
        "space.yaml:8: parameters.training.epochs: input should be greater than or equal to 1, got 0 (a whole number)",
    ),
    ("{min: 2, max: 4}", "{min: 2, max: 4.5}", "training.epochs: input should be a valid integer, got 4.5 (a number)"),
    ("{min: 2, max: 4}", "{min: 2, max: 4, step: 0.5}", "training.epochs: input should be a valid integer, got "),
    ("{min: 2, max: 4}", "[2, few]", "training.epochs: input should be a valid integer, got 'few' (a text)"),
    ("{min: 2, max: 4}", "[2, true]", "training.epochs: input should be a valid integer, got True (true or false)"),
    (
        "[default, adam_plain]",
        "[defualt, adam_plain]",
        "space.yaml:6: parameters.training.recipe: unknown recipe 'defualt'; did you mean default? (known: default, ",
    ),
    ("training.epochs: {min: 2, max: 4}", "training.optimiser: [adm]", "unknown optimiser 'adm'; did you mean adam?"),
    (
        "training.epochs: {min: 2, max: 4}",
        "training.schedule: [x]",
        "parameters.training.schedule: unknown schedule 'x'",
    ),
    (
        "momentum: 0.8",
        "optimiser: adm",
        "space.yaml:10: training.optimiser: unknown optimiser 'adm'; did you mean adam?",
    ),
    ("data.train_limit: {values: [500]", "data.name: {values: [digit]", "unknown name 'digit'; did you mean digits?"),
    (
        "data.train_limit: {values: [500]",
        "data.limit: {values: [500]",
        "parameters.data.limit: unknown key of data; did you mean train_limit?",
    ),
    (
        "data.train_limit: {values: [500]",
        "data.validation: {values: [0.1]",
        "space.yaml:9: parameters.data.validation: cannot be searched over, the accuracies of one study would be of "
        "different validation images; write it under `data`",
    ),
    ("data.train_limit", "data.split_seed", "parameters.data.split_seed: cannot be searched over"),
    ("data.train_limit", "data.test", "parameters.data.test: cannot be searched over"),
    ("recipe: adam_plain, family", "recipe: paper, family", "training.recipe never is 'paper'; its values are ["),
    (
        "{training.recipe: adam_plain, family",
        "{training.recip: x, family",
        "no such parameter; did you mean training.re",
    ),
    (
        "data.train_limit: {values: [500]",
        "data.train_limit: {min: 100, max: 900",
        "space.yaml:9: parameters.data.train_limit: more than 8 different settings of the data, and all are read ",
    ),
    ("momentum: 0.8", "momentum: 3", "space.yaml:10: training.momentum: 3.0 is not a number from 0 to below 1"),
    (
        "training.epochs: {min: 2, max: 4}",
        "training.momentum: [0.9, 3]",
        "space.yaml:8: parameters.training.momentum: 3.0 is not a number from 0 to below 1",
    ),
    (
        "training.epochs: {min: 2, max: 4}",
        "training.warmup: {values: [0.2, 2], when: {training.batch_size: 64}}",
        "space.yaml:8: parameters.training.warmup: 2.0 is not a number from 0 to 1",
    ),
]


@pytest.mark.parametrize(("old", "new", "text"), BAD, ids=[new[:40] for _, new, _ in BAD])
def test_errors_name_file_line_key_and_remedy(tmp_path: Path, old: str, new: str, text: str) -> None:
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new, 1))
    with pytest.raises(MnetError) as caught:
        survey(open_space(path, []))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "training.epochs=2",
            "--set training.epochs: parameters.training.epochs decides it; set that: -s parameters.training.epochs=...",
        ),
        ("training={recipe: paper}", "--set training: parameters.training.recipe decides it"),
        ("parameters.training.epochs=[0]", "--set parameters.training.epochs: input should be greater than"),
    ],
)
def test_an_override_that_would_do_nothing_is_refused(tmp_path: Path, override: str, text: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path, TEXT), [override], KNOWN)
    assert text in str(caught.value)


def test_an_override_that_does_something_is_taken(tmp_path: Path) -> None:
    changes = [
        "training.batch_size=10",
        "data.train_limit=700",
        "training.momentum=0.5",
        "parameters.training.epochs=5",
    ]
    space = load_space(write(tmp_path, TEXT), changes, KNOWN)
    code = {"family": "mobilenet_v1", "training.recipe": "default", "training.epochs": 5, "resolution": 32}
    assert space.training_of(code) == Training(epochs=5, batch_size=10, momentum=0.5)
    assert space.data_of(code).train_limit == 700
    always = TEXT.replace("when: {resolution: 20}", "when: {resolution: [20, 32]}")  # a condition that always holds
    with pytest.raises(SpaceError, match=r"parameters\.data\.train_limit decides it"):
        load_space(write(tmp_path, always), ["data.train_limit=700"], KNOWN)


# ---------------------------------------------------------------- identity


def test_keys_that_a_later_version_brings_make_no_other_space(tmp_path: Path) -> None:
    text = "family: lenet5\ndata: {train_limit: 200}\nparameters: {resolution: 32}\ntraining: {epochs: 3}\n"
    space = load_space(write(tmp_path, text))
    before = json.loads(json.dumps(space.identity))
    # as 0.1 wrote it
    before["data"] = {"name": "digits", "validation": 0.2, "test": 0.2, "split_seed": 0, "limit": 200, "flip": None}
    before["training"] = {"recipe": "default", "epochs": 3, "batch_size": 128, "learning_rate": None}
    assert difference(before, space.identity) == difference(space.identity, before) == []
    changed = load_space(write(tmp_path, text), ["data.train_limit=100", "training.momentum=0.5"])
    assert difference(before, changed.identity) == ["data.train_limit: 200 -> 100", "training.momentum: absent -> 0.5"]
    assert difference(before, load_space(write(tmp_path, text), ["data.train_limit=null"]).identity)


def test_parameters_are_part_of_the_identity_and_go_through_json(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, TEXT), (), KNOWN)
    again = make_space("again", json.loads(json.dumps(space.to_json())), Source("stored"), KNOWN)
    assert again.hash == space.hash
    assert [again.key(code) for code in again.codes()] == [space.key(code) for code in space.codes()]
    assert load_space(write(tmp_path, TEXT), ["parameters.training.epochs=5"]).hash != space.hash


# ---------------------------------------------------------------- the space of the classics


def test_the_classics_are_trained_as_printed_and_by_our_recipe() -> None:
    space = open_space(CLASSICS, ["data.train_limit=5000", "training.epochs=2"])
    found = survey(space)
    ways: dict[str, list[Training]] = {}
    for key, (params, _) in found.networks.items():
        ways.setdefault(key.split("-")[0], []).append(space.training_of(params))
        assert space.data_of(params).train_limit == 5000
    for system in SYSTEMS:
        ours, theirs = ways[system.arch().id]
        assert ours == Training(epochs=2)
        keras = system.family not in ("mobilenet_v1", "mobilenet_cifar")
        assert (theirs.recipe, theirs.epochs, theirs.batch_size) == ("adam_plain", 2, 32 if keras else 128)
        assert theirs.weight_decay == (0.004 if system.family == "mobilenet_cifar" else None)
    alone = [space.arch(code).family for code in found.distinct().values() if "training.recipe" not in code]
    assert alone == ["mobilenet_v2", "mobilenet_v3_small"]
    assert (len(found.networks), len(ways)) == (20, 11)


def test_printed_params_are_those_of_the_networks() -> None:
    for system in SYSTEMS:
        printed = system.trainable or system.params
        assert printed in (None, costs(system.arch()).params)
