"""What a network comes to on images it was not trained on, and the batch-norm statistics for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnet_search.search.data import Data, Split
from mnet_search.search.data_stream import StreamedSplit
from mnet_search.search.pixels import normalise

__all__ = ["EVALUATION_PIXELS", "Images", "evaluate", "recalibrate"]

Images: TypeAlias = Split | StreamedSplit
EVALUATION_PIXELS = 2**19  # in one batch: 512 images of 32x32, 10 of 224x224


@torch.no_grad()
def evaluate(module: nn.Module, images: Images, data: Data, *, resolution: int) -> tuple[float, float]:
    """Mean cross entropy in nats and accuracy 0..1 of `module` on `images`, on the module's device, in float32.

    Images are brought to `resolution` and normalised as `data`'s training images. Leaves the module in eval mode.
    """
    images = images.at(resolution, next(module.parameters()).device)
    total = torch.zeros(2, device=images.labels.device)
    module.eval()
    size = max(1, EVALUATION_PIXELS // resolution**2)
    for batch, labels in images.batches(torch.arange(len(images)).split(size)):
        logits = module(normalise(batch, data.mean, data.std))
        total[0] += F.cross_entropy(logits, labels, reduction="sum")
        total[1] += (logits.argmax(1) == labels).sum()
    loss, correct = total.tolist()
    return loss / len(images), correct / len(images)


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterator[Tensor]) -> None:
    """Replace every batch norm's running statistics by plain means over `batches`. Leaves the module in eval mode.

    Running averages lag far behind after few steps, and networks then validate near chance. Training never reads them,
    so it is not disturbed; checkpoints hold them, so saved weights are the network that was validated.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    module.eval()  # dropout off
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    try:
        for index, batch in enumerate(batches if norms else ()):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # the mean so far; momentum None would wait for the device to say it
            module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
