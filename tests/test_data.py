"""The split, on real digits and on labels that hypothesis makes up."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnet_search.search import data
from mnet_search.search.data import (
    DataError,
    DataOptions,
    Split,
    describe,
    load,
    load_test,
    resize,
    split_indices,
    stratified_subset,
)

DIGITS = load(DataOptions())


def pixels_of(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images.contiguous()}


# ---------------------------------------------------------------- digits, whole


def test_digits_are_described_without_reading_them() -> None:
    facts = describe(DataOptions())
    assert (facts.name, facts.channels, facts.classes, facts.height, facts.width) == ("digits", 1, 10, 8, 8)
    assert facts.class_names == tuple("0123456789")
    assert not facts.flip, "a mirrored digit is another sign"
    assert "CC BY 4.0" in facts.licence


def test_digits_are_parted_into_every_image_once() -> None:
    test = load_test(DataOptions())
    parts = [pixels_of(part) for part in (DIGITS.train, DIGITS.validation, test)]
    assert [len(part) for part in parts] == [len(DIGITS.train), len(DIGITS.validation), len(test)] == [1079, 359, 359]
    assert len(set.union(*parts)) == 1797
    assert DIGITS.train.images.dtype == torch.uint8
    assert DIGITS.train.labels.dtype == torch.int64
    assert int(DIGITS.train.images.max()) == 255


def test_every_digit_is_in_each_part_in_proportion() -> None:
    whole = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    for part, share in ((DIGITS.train, 0.6), (DIGITS.validation, 0.2), (load_test(DataOptions()), 0.2)):
        assert (torch.bincount(part.labels) - share * whole).abs().max() <= 1


def test_the_split_is_the_same_on_every_machine_and_day() -> None:
    assert DIGITS.digest == "225a874d24a73ba000729e22413fd135af48461841e348e2eabcaba994d68ea7"


def test_another_seed_is_another_split() -> None:
    other = load(DataOptions(split_seed=1))
    assert other.digest != DIGITS.digest
    assert pixels_of(other.train) != pixels_of(DIGITS.train)


def test_the_split_neither_reads_nor_moves_global_generators() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    torch_before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())
    again = load.__wrapped__(DataOptions())
    assert again.digest == DIGITS.digest
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert repr(np.random.get_state()) == numpy_before


def test_a_reused_worker_reads_once() -> None:
    assert load(DataOptions()) is load(DataOptions())


def test_train_limit_takes_training_images_only_and_keeps_the_rest() -> None:
    few = load(DataOptions(train_limit=100))
    assert len(few.train) == 100
    assert torch.bincount(few.train.labels).tolist() == [10] * 10
    assert pixels_of(few.train) < pixels_of(DIGITS.train)
    assert pixels_of(few.validation) == pixels_of(DIGITS.validation)
    assert len(load(DataOptions(train_limit=10**6)).train) == len(DIGITS.train)


def test_a_fraction_is_a_limit_and_the_smaller_count_wins() -> None:
    half = load(DataOptions(train_fraction=0.5))
    assert len(half.train) == 540
    assert pixels_of(half.train) == pixels_of(load(DataOptions(train_limit=540)).train)
    assert pixels_of(half.validation) == pixels_of(DIGITS.validation)
    assert pixels_of(load_test(DataOptions(train_fraction=0.5))) == pixels_of(load_test(DataOptions()))
    assert load(DataOptions(train_fraction=1)).digest == DIGITS.digest
    for limit, expected in ((100, 100), (1000, 540)):
        assert len(load(DataOptions(train_fraction=0.5, train_limit=limit)).train) == expected


def test_flip_can_be_set_by_the_user() -> None:
    assert describe(DataOptions(flip=True)).flip


def test_statistics_are_those_of_the_training_images() -> None:
    images = DIGITS.train.images.double() / 255
    assert DIGITS.mean == pytest.approx((images.mean().item(),), abs=1e-12)
    assert DIGITS.std == pytest.approx((images.std(correction=0).item(),), abs=1e-12)


# ---------------------------------------------------------------- placed and batched


def test_a_split_is_placed_without_a_copy_where_nothing_changes() -> None:
    split = DIGITS.train
    assert split.at(8, torch.device("cpu")) is split
    large = split.at(11, torch.device("cpu"))
    assert torch.equal(large.images, resize(split.images, 11))
    assert large.labels is split.labels
    assert split.at(11, torch.device("cpu")) is large is large.at(11, torch.device("cpu"))


def test_a_split_remembers_the_last_placements_only(monkeypatch: pytest.MonkeyPatch) -> None:
    split, cpu = Split(DIGITS.train.images, DIGITS.train.labels), torch.device("cpu")
    first = split.at(9, cpu)
    others = [split.at(resolution, cpu) for resolution in (10, 11)]
    assert split.at(9, cpu) is first
    split.at(12, cpu)
    assert split.at(9, cpu) is not first
    assert split.at(11, cpu) is others[1]
    monkeypatch.setattr(data, "RESIZED_CACHE_BYTES", 2 * 1079 * 14**2)
    kept = [split.at(resolution, cpu) for resolution in (13, 14)]
    assert [split.at(resolution, cpu) is it for resolution, it in zip((13, 14), kept, strict=True)] == [True, True]
    split.at(15, cpu)
    assert split.at(14, cpu) is not kept[1], "14 and 15 together are over the bound"


def test_batches_are_those_positions() -> None:
    parts = [torch.tensor([5, 0, 7]), torch.tensor([1])]
    for seed in (None, 3):
        for part, (images, labels) in zip(parts, DIGITS.train.batches(parts, seed), strict=True):
            assert torch.equal(images, DIGITS.train.images[part])
            assert torch.equal(labels, DIGITS.train.labels[part])


# ---------------------------------------------------------------- the split, in general

fractions = st.floats(0.05, 0.45)
class_sizes = st.lists(st.integers(20, 60), min_size=2, max_size=6)


def shuffled_labels(sizes: list[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@given(class_sizes, fractions, fractions, st.integers(0, 2**40))
def test_a_split_is_complete_disjoint_stratified_and_repeatable(
    sizes: list[int], validation: float, test: float, seed: int
) -> None:
    labels = shuffled_labels(sizes, seed)
    parts = split_indices(labels, validation=validation, test=test, seed=seed)
    arrays = (parts.train, parts.validation, parts.test)
    assert np.array_equal(np.sort(np.concatenate(arrays)), np.arange(len(labels)))
    for array, fraction in ((parts.validation, validation), (parts.test, test)):
        assert np.abs(np.bincount(labels[array]) - fraction * np.array(sizes)).max() <= 0.5
    assert np.bincount(labels[parts.train], minlength=len(sizes)).all()
    again = split_indices(labels, validation=validation, test=test, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, (again.train, again.validation, again.test), strict=True))


@given(class_sizes, fractions, fractions, st.integers(0, 99))
def test_the_test_part_does_not_depend_on_the_validation_fraction(
    sizes: list[int], one: float, other: float, seed: int
) -> None:
    labels = shuffled_labels(sizes, seed)
    parts = [split_indices(labels, validation=fraction, test=0.2, seed=seed) for fraction in (one, other)]
    assert np.array_equal(parts[0].test, parts[1].test)


@given(class_sizes, st.data())
def test_a_subset_is_stratified_and_lies_in_every_larger_one(sizes: list[int], draw: st.DataObject) -> None:
    labels = shuffled_labels(sizes, 0)
    limits = st.integers(len(sizes), len(labels))
    small, large = sorted((draw.draw(limits), draw.draw(limits)))
    chosen = stratified_subset(labels, small, seed=3)
    assert len(chosen) == small
    assert set(chosen) <= set(stratified_subset(labels, large, seed=3))
    counts = np.bincount(labels[chosen], minlength=len(sizes))
    assert counts.min() >= 1
    assert np.abs(counts - small * np.array(sizes) / len(labels)).max() <= 2


def test_no_part_is_cut_where_none_is_asked() -> None:
    parts = split_indices(np.arange(10) % 2, validation=0.2, test=0.0, seed=0)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (8, 2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.5}, "data.validation: 1.5 is not a fraction between 0 and 1"),
        ({"validation": 0}, "data.validation: 0 is not"),
        ({"test": 1}, "data.test: 1 is not"),
        ({"test": float("nan")}, "data.test: nan is not"),
        ({"validation": "0.2"}, "data.validation: '0.2' is not"),
        ({"validation": True}, "data.validation: True is not"),
        ({"split_seed": -1}, "data.split_seed: -1 is not"),
        ({"train_limit": 0}, "data.train_limit: 0 is not a number of images"),
        ({"train_limit": 2.5}, "data.train_limit: 2.5 is not"),
        (
            {"train_fraction": 0},
            "data.train_fraction: 0 is not a share above 0 and up to 1; leave it out to train on all",
        ),
        ({"train_fraction": 1.5}, "data.train_fraction: 1.5 is not"),
        ({"train_fraction": float("nan")}, "data.train_fraction: nan is not"),
        ({"train_fraction": True}, "data.train_fraction: True is not"),
        ({"train_fraction": "half"}, "data.train_fraction: 'half' is not"),
        ({"train_fraction": 0.005}, "data.train_fraction: 5 images cannot show all 10 classes"),
        ({"train_fraction": 0.5, "train_limit": 9}, "data.train_limit: 9 images cannot show all 10 classes"),
        ({"stream": "yes"}, "data.stream: 'yes' is not true or false; leave it out"),
        ({"stream": 1}, "data.stream: 1 is not true or false"),
        ({"stream": True}, "data.stream: digits is not read from a folder of pictures; leave it out"),
        ({"path": 3}, "data.path: 3 is not text"),
        ({"train_limit": 9}, "data.train_limit: 9 images cannot show all 10 classes"),
        (
            {"validation": 0.5, "test": 0.5},
            "validation 0.5 and test 0.5: together 1 of all images, which leaves none for",
        ),
        ({"validation": 0.7, "test": 0.7}, "together 1.4 of all images, which leaves none for training; lower one"),
        ({"validation": 0.5, "test": 0.499}, "no image of class 0 .178 in all. is left for train"),
        ({"validation": 0.001}, "validation 0.001 and test 0.2: no image of class 0 .* is left for validation"),
        ({"test": 0.001}, "is left for test; change the fractions or add images"),
        ({"path": "pictures"}, "digits: the images come with scikit-learn and not from 'pictures'"),
    ],
)
def test_impossible_options_say_which_and_what_to_do(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(DataOptions(**options))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# ---------------------------------------------------------------- the real thing


@pytest.mark.skipif("MNET_CIFAR10" not in os.environ, reason="MNET_CIFAR10 names no folder with CIFAR-10")
def test_the_official_cifar10() -> None:
    options = DataOptions("cifar10", path=str(Path(os.environ["MNET_CIFAR10"])))
    real, test = load(options), load_test(options)
    assert torch.bincount(real.train.labels).tolist() == [4000] * 10
    assert torch.bincount(real.validation.labels).tolist() == [1000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert real.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert real.std == pytest.approx((0.247, 0.2435, 0.2616), abs=1e-3)
    assert real.digest.startswith("d5fd85747313")
