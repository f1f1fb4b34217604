"""The split, the cache and the pixel operations, on real digits and on labels that hypothesis makes up."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnet_search.search import data
from mnet_search.search.data import (
    DataError,
    DataOptions,
    Split,
    augment,
    describe,
    load,
    load_test,
    normalise,
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


def test_limit_takes_training_images_only_and_keeps_the_rest() -> None:
    few = load(DataOptions(limit=100))
    assert len(few.train) == 100
    assert torch.bincount(few.train.labels).tolist() == [10] * 10
    assert pixels_of(few.train) < pixels_of(DIGITS.train)
    assert pixels_of(few.validation) == pixels_of(DIGITS.validation)
    assert len(load(DataOptions(limit=10**6)).train) == len(DIGITS.train)


def test_flip_can_be_set_by_the_user() -> None:
    assert describe(DataOptions(flip=True)).flip


def test_statistics_are_those_of_the_training_images() -> None:
    images = DIGITS.train.images.double() / 255
    assert DIGITS.mean == pytest.approx((images.mean().item(),), abs=1e-12)
    assert DIGITS.std == pytest.approx((images.std(correction=0).item(),), abs=1e-12)


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
        ({"limit": 0}, "data.limit: 0 is not a number of images"),
        ({"limit": 2.5}, "data.limit: 2.5 is not"),
        ({"path": 3}, "data.path: 3 is not text"),
        ({"limit": 9}, "data.limit: 9 images cannot show all 10 classes"),
        ({"validation": 0.5, "test": 0.5}, "validation 0.5 and test 0.5: no image of class 0 .178 in all. is left for"),
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


# ---------------------------------------------------------------- pixels


def colour_digits(count: int, side: int = 12) -> torch.Tensor:
    """Real digits, one in each channel, so that an exchange of channels or images shows."""
    images = DIGITS.train.images[: 3 * count].reshape(count, 3, 8, 8)
    return images if side == 8 else resize(images, side)


@pytest.mark.parametrize("resolution", [1, 3, 5, 8, 11, 24])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_pillows_bilinear(resolution: int, channels: int) -> None:
    images = colour_digits(5, side=8)[:, :channels]
    ours = resize(images, resolution)
    assert ours.dtype == torch.uint8
    for image, result in zip(images, ours, strict=True):
        for plane, small in zip(image, result, strict=True):
            theirs = Image.fromarray(plane.numpy()).resize((resolution, resolution), Image.Resampling.BILINEAR)
            assert np.abs(np.asarray(theirs).astype(int) - small.numpy()).max() <= 1


def test_resize_makes_squares_of_any_shape() -> None:
    assert resize(colour_digits(2)[:, :, :5], 7).shape == (2, 3, 7, 7)


def test_resize_in_small_chunks_is_resize_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = colour_digits(50)
    whole = resize(images, 9)
    monkeypatch.setattr(data, "RESIZE_CHUNK_BYTES", 4 * 3 * 12 * 12 * 7)
    assert torch.equal(resize(images, 9), whole)


def test_resize_to_the_same_size_copies_nothing() -> None:
    images = colour_digits(2)
    assert resize(images, 12) is images


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_each_augmented_image_is_one_window_of_its_padded_self(padding: int, flip: bool, seed: int) -> None:
    batch = colour_digits(16)
    result = augment(batch, torch.Generator().manual_seed(seed), padding, flip)
    assert result.shape == batch.shape
    assert result.dtype == torch.uint8
    for image, cut in zip(F.pad(batch, (padding,) * 4), result, strict=True):
        windows = [
            variant[:, top : top + 12, left : left + 12]
            for variant in ([image, image.flip(2)] if flip else [image])
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        assert any(torch.equal(cut, window) for window in windows)


def test_augment_draws_for_each_image_and_from_the_given_generator_only() -> None:
    same = colour_digits(1).repeat(256, 1, 1, 1)
    torch.manual_seed(0)
    one = augment(same, torch.Generator().manual_seed(7), 2, True)
    torch.manual_seed(1)
    assert torch.equal(one, augment(same, torch.Generator().manual_seed(7), 2, True))
    assert not torch.equal(one, augment(same, torch.Generator().manual_seed(8), 2, True))
    # 5 x 5 places times two directions; 256 draws miss none of 50 but with a chance below 0.3.
    assert len({image.numpy().tobytes() for image in one.contiguous()}) >= 45


def test_augment_mirrors_about_half_of_the_images_only_where_it_may() -> None:
    batch = colour_digits(300)
    mirrored = augment(batch, torch.Generator().manual_seed(0), 0, True)
    turned = sum(not torch.equal(a, b) for a, b in zip(batch, mirrored, strict=True))
    assert 120 <= turned <= 180
    assert torch.equal(augment(batch, torch.Generator(), 0, False), batch)


def test_normalised_training_images_have_mean_0_and_deviation_1_in_channels_last() -> None:
    images = normalise(DIGITS.train.images, DIGITS.mean, DIGITS.std)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    colours = normalise(colour_digits(4), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    assert colours.is_contiguous(memory_format=torch.channels_last)
    expected = (colour_digits(4)[:, 2].double() / 255 - 0.3) / 0.125
    assert (colours[:, 2].double() - expected).abs().max() < 1e-5


def test_the_whole_road_of_a_batch_stays_channels_last() -> None:
    batch = resize(colour_digits(9), 10)[torch.tensor([4, 2, 7])]
    cut = augment(batch, torch.Generator(), 2, True)
    assert cut.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: resize(x, 0), "resize: resolution 0 is not a number of pixels"),
        (lambda x: resize(x.float(), 8), "resize: images are torch.float32 of shape .2, 3, 12, 12.; uint8"),
        (lambda x: augment(x[0], torch.Generator(), 2, False), "augment: images are torch.uint8 of shape .3, 12, 12."),
        (lambda x: augment(x, torch.Generator(), -1, False), "augment: padding -1 is negative"),
        (lambda x: normalise(x, (0.5,), (0.5,)), "normalise: 1 means and 1 deviations for 3 channels"),
    ],
)
def test_pixel_operations_refuse_what_they_would_garble(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(colour_digits(2))


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
