"""The training loop's pixel operations, on real digits and against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnet_search.search import pixels
from mnet_search.search.data import DataOptions, load
from mnet_search.search.pixels import augment, cutout, mixup, normalise, resize

DIGITS = load(DataOptions())


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
    monkeypatch.setattr(pixels, "RESIZE_CHUNK_BYTES", 4 * 3 * 12 * 12 * 7)
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


# ---------------------------------------------------------------- cutout and mixup


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_cutout_blanks_one_clipped_square_of_each_image(side: int, height: int, width: int, seed: int) -> None:
    batch = torch.rand(12, 2, height, width) + 1
    before = batch.clone()
    result = cutout(batch, generator(seed), side)
    assert torch.equal(batch, before), "the input is not written to"
    for image, cut in zip(batch, result, strict=True):
        squares = []
        for centre_row in range(height):
            for centre_column in range(width):
                top, left = centre_row - side // 2, centre_column - side // 2
                expected = image.clone()
                expected[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
                squares.append(expected)
        assert any(torch.equal(cut, square) for square in squares)


def test_cutout_draws_every_centre_for_each_image_from_the_given_generator_only() -> None:
    same = torch.ones(400, 1, 4, 5)
    torch.manual_seed(0)
    one = cutout(same, generator(7), 1)
    torch.manual_seed(1)
    assert torch.equal(one, cutout(same, generator(7), 1))
    assert not torch.equal(one, cutout(same, generator(8), 1))
    # 400 draws miss none of 20 places but with a chance of 3e-8.
    assert ((one == 0).sum(0) > 0).all()


def test_cutout_of_side_0_is_the_input_and_blanks_whatever_the_value() -> None:
    batch = torch.full((2, 1, 3, 3), float("inf"))
    assert cutout(batch, generator(), 0) is batch
    assert torch.equal(cutout(batch, generator(), 99), torch.zeros(2, 1, 3, 3))


@settings(deadline=None)
@given(st.integers(1, 9), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_mixup_mixes_each_image_with_its_mirror_place(count: int, alpha: float, seed: int) -> None:
    batch = torch.randn(count, 2, 3, 3)
    mixed, share = mixup(batch, generator(seed), alpha)
    assert share.dtype == torch.float32
    assert ((share >= 0.5) & (share <= 1)).all()
    for index in range(count):
        expected = share[index] * batch[index] + (1 - share[index]) * batch[count - 1 - index]
        torch.testing.assert_close(mixed[index], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(mixup(batch, generator(seed), alpha)[0], mixed)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_mixup_draws_the_larger_part_of_a_beta(alpha: float) -> None:
    share = mixup(torch.zeros(40_000, 1, 1, 1), generator(), alpha)[1].double().numpy()
    drawn = np.random.default_rng(0).beta(alpha, alpha, 40_000)
    expected = np.maximum(drawn, 1 - drawn)
    at = np.linspace(0.5, 0.999, 21)  # not at 1, to which single precision rounds many
    shares = [np.searchsorted(np.sort(values), at) / 40_000 for values in (share, expected)]
    # Kolmogorov and Smirnov's distance of two such samples is above 0.0138 with a chance of 0.001.
    assert np.abs(shares[0] - shares[1]).max() < 0.0138


def test_mixup_of_a_tiny_alpha_mixes_nothing_and_of_a_huge_one_halves() -> None:
    batch = torch.randn(1000, 1, 2, 2)
    assert (mixup(batch, generator(), 1e-6)[1] > 0.999).all()
    assert (mixup(batch, generator(), 1e6)[1] < 0.51).all()
    mixed, share = mixup(batch, generator(), 0)
    assert mixed is batch
    assert torch.equal(share, torch.ones(1000))


def test_cutout_and_mixup_keep_memory_format_and_kind() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        batch = torch.randn(4, 3, 6, 6).to(dtype).to(memory_format=torch.channels_last)
        for result in (cutout(batch, generator(), 3), mixup(batch, generator(), 0.2)[0]):
            assert result.dtype == dtype
            assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: resize(x, 0), "resize: resolution 0 is not a number of pixels"),
        (lambda x: resize(x.float(), 8), "resize: images are torch.float32 of shape .2, 3, 12, 12.; uint8"),
        (lambda x: augment(x[0], torch.Generator(), 2, False), "augment: images are torch.uint8 of shape .3, 12, 12."),
        (lambda x: augment(x, torch.Generator(), -1, False), "augment: padding -1 is negative"),
        (
            lambda x: cutout(x, torch.Generator(), 2),
            "cutout: images are torch.uint8 of shape .2, 3, 12, 12.; normalised",
        ),
        (lambda x: cutout(x.float(), torch.Generator(), -1), "cutout: side -1 is negative"),
        (lambda x: mixup(x[0].float(), torch.Generator(), 1), "mixup: images are torch.float32 of shape .3, 12, 12."),
        (lambda x: mixup(x.float(), torch.Generator(), -1), "mixup: alpha -1 is not a number from 0 up"),
        (lambda x: mixup(x.float(), torch.Generator(), float("nan")), "mixup: alpha nan is not"),
        (lambda x: normalise(x, (0.5,), (0.5,)), "normalise: 1 means and 1 deviations for 3 channels"),
    ],
)
def test_pixel_operations_refuse_what_they_would_garble(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(colour_digits(2))
