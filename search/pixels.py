"""Pixel operations of the training loop: batched, on the batch's device, and never waiting for it.

All that is random is drawn from a generator that the caller gives.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment", "cutout", "mixup", "normalise", "resize"]

RESIZE_CHUNK_BYTES = 64 * 2**20
"""Of float32 images, input or output whichever is larger, that `resize` holds at once."""


def resize(images: Tensor, resolution: int) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, resolution, resolution), bilinear, antialiased where it shrinks.

    Returns the input itself where nothing changes. Works in chunks of `RESIZE_CHUNK_BYTES`, so 50,000 images need
    little more than the result. The CPU's own uint8 kernel (4 to 20 times faster) rounds within, so it may differ from
    a GPU's result by one grey step.
    """
    _demand_images(images, "resize")
    if resolution < 1:
        raise ValueError(f"resize: resolution {resolution} is not a number of pixels")
    count, channels, height, width = images.shape
    if (height, width) == (resolution, resolution):
        return images
    shape = (count, channels, resolution, resolution)
    result = torch.empty(shape, dtype=torch.uint8, device=images.device, memory_format=torch.channels_last)
    step = max(1, RESIZE_CHUNK_BYTES // (4 * channels * max(height * width, resolution**2)))
    for start in range(0, count, step):
        # torch 2.15's uint8 kernel stops with an internal assert on three contiguous channels to one pixel.
        chunk = images[start : start + step].contiguous(memory_format=torch.channels_last)
        pixels = chunk if chunk.device.type == "cpu" else chunk.float()
        pixels = F.interpolate(pixels, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
        result[start : start + step] = pixels if pixels.dtype == torch.uint8 else pixels.round_().clamp_(0, 255)
    return result


def augment(batch: Tensor, generator: torch.Generator, padding: int, flip: bool) -> Tensor:
    """uint8 (N, C, H, W) -> the same: each image cut from its black-padded self at its own place, half of them
    mirrored.

    The draws come from `generator` on the generator's own device, so a CPU generator gives the same crops on every
    device.
    """
    _demand_images(batch, "augment")
    if padding < 0:
        raise ValueError(f"augment: padding {padding} is negative")
    count, _, height, width = batch.shape

    padded = F.pad(batch, (padding,) * 4)
    top, left, mirrored = (_draw(choices, batch, generator) for choices in (2 * padding + 1, 2 * padding + 1, 1 + flip))
    # Every window of every image is a view; one indexed copy takes the drawn ones, far faster than indexing pixels.
    variants = torch.stack([padded, padded.flip(3)]) if flip else padded[None]
    windows = variants.unfold(3, height, 1).unfold(4, width, 1)
    return windows[mirrored, torch.arange(count, device=batch.device), :, top, left]


def normalise(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (N, C, H, W) -> float32 (N, C, H, W) in channels_last memory: (pixel / 255 - mean) / std per channel."""
    _demand_images(batch, "normalise")
    if not len(mean) == len(std) == batch.shape[1]:
        raise ValueError(f"normalise: {len(mean)} means and {len(std)} deviations for {batch.shape[1]} channels")
    count, channels, height, width = batch.shape
    scale, shift = _row(mean, std, width, batch.device)
    # Whole rows of pixels at a time: a few channels alone would be too short for the processor's vectors (4 times).
    rows = batch.permute(0, 2, 3, 1).reshape(count * height, width * channels)
    found = torch.addcmul(shift, rows.to(torch.float32), scale)
    return found.view(count, height, width, channels).permute(0, 3, 1, 2)


def cutout(batch: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """Normalised float (N, C, H, W) -> the same, in each image a square of `side` pixels set to 0, the mean colour.

    The squares' centres are drawn from all pixels, and what lies beyond the border is cut off, so that an image may
    lose as little as a quarter of a square (DeVries and Taylor, arXiv 1708.04552). Draws as `augment` does.
    """
    _demand_floats(batch, "cutout")
    if side < 0:
        raise ValueError(f"cutout: side {side} is negative")
    if side == 0:
        return batch
    rows, columns = (_covered(length, side, batch, generator) for length in batch.shape[2:])
    # In place on a copy: out of place, the result would not be channels_last.
    return batch.clone().masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def mixup(batch: Tensor, generator: torch.Generator, alpha: float) -> tuple[Tensor, Tensor]:
    """Float (N, C, H, W) -> the same, image i mixed with image N - 1 - i, and the weight (N,) of each one's own label.

    The weight is the larger of l and 1 - l, l ~ Beta(alpha, alpha), so float32 from 0.5 to 1 (Zhang et al., arXiv
    1710.09412); an alpha of 0 mixes nothing. The order of a batch is random anyway, so the partner is a random one.
    Draws as `augment` does.
    """
    _demand_floats(batch, "mixup")
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"mixup: alpha {alpha} is not a number from 0 up")
    if alpha == 0:
        return batch, torch.ones(len(batch), device=batch.device)
    # l is x / (x + y) of two Gamma(alpha) draws, here as logarithms: log Gamma(alpha) is log Gamma(alpha + 1) less an
    # exponential over alpha. Where alpha is small, the draws themselves are below any number above 0.
    shape = torch.full((2, len(batch)), float(alpha), device=generator.device)
    logarithms = torch._standard_gamma(shape + 1, generator=generator).log_()
    logarithms -= torch.empty_like(shape).exponential_(generator=generator) / alpha
    share = torch.sigmoid((logarithms[0] - logarithms[1]).abs()).to(batch.device, non_blocking=True)
    return torch.lerp(batch.flip(0), batch, share.to(batch.dtype).view(-1, 1, 1, 1)), share


def _draw(choices: int, batch: Tensor, generator: torch.Generator) -> Tensor:
    """For each image a whole number from 0 to choices - 1, (N,) on the batch's device."""
    drawn = torch.randint(choices, (len(batch),), generator=generator, device=generator.device)
    return drawn.to(batch.device, non_blocking=True)


def _covered(length: int, side: int, batch: Tensor, generator: torch.Generator) -> Tensor:
    """Which of `length` pixels lie within a stretch of `side` about a centre drawn for each image: bool (N, length)."""
    start = (_draw(length, batch, generator) - side // 2)[:, None]
    places = torch.arange(length, device=batch.device)
    return (places >= start) & (places < start + side)


@functools.lru_cache(maxsize=64)
def _row(mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand of a row of pixels, (W * C,) each: pixel * factor + summand = (pixel / 255 - mean) / std.

    Kept, since a tensor made on a GPU makes the step loop wait for it.
    """
    means, stds = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    pair = (1 / (255 * stds), -means / stds)
    return tuple(values.repeat(width).to(device=device, dtype=torch.float32) for values in pair)  # type: ignore[return-value]  # two of them


def _demand_images(images: Tensor, where: str) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"{where}: images are {images.dtype} of shape {tuple(images.shape)}; uint8 (N, C, H, W) is needed"
        )


def _demand_floats(images: Tensor, where: str) -> None:
    if not images.is_floating_point() or images.ndim != 4:
        raise ValueError(
            f"{where}: images are {images.dtype} of shape {tuple(images.shape)}; normalised (N, C, H, W) is needed"
        )
