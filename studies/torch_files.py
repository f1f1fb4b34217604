"""Trained networks as files of torch's own kind: weights, torch.export programs, ExecuTorch programs.

Programs hold the normalisation: they take float32 images from 0 (black) to 1 (white), at the network's resolution.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mnet_search.models.arch import MnetError
from mnet_search.studies.parity import check
from mnet_search.studies.trained import Made, Trained

TRACED_BATCH = 3  # any but 0 and 1, which torch.export takes for constants


class FromPixels(nn.Module):
    """float32 (N, C, H, W) from 0 to 1 -> scores (N, classes): (images - mean) / std, then the network."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network((images - self.mean) / self.std)
        return scores


def program(trained: Trained, *, batch: int | None = None) -> torch.export.ExportedProgram:
    """The network with its normalisation, for any batch size unless `batch` fixes it. Raises MnetError."""
    mean, std, _ = trained.about_images
    module = FromPixels(trained.module, mean, std).eval().requires_grad_(False)
    example = torch.zeros(batch or TRACED_BATCH, *trained.arch.input)
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    with quietly(trained, "torch.export"):
        found = torch.export.export(module, (example,), dynamic_shapes=shapes)
        for node in found.graph.nodes:  # which source lines on which machine: nobody else's business
            node.meta.pop("stack_trace", None)
        return found


@contextlib.contextmanager
def quietly(trained: Trained, what: str) -> Iterator[None]:
    """What exporters say of themselves is kept from stdout and the log, and what they raise is one line."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantiser warns of every norm that it leaves as it is, by the root logger
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    except (MnetError, OSError):
        raise
    except Exception as error:  # exporters raise whatever they meet
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no further text")
        raise MnetError(
            f"trial {trained.number} ({trained.arch.family}): {what} of torch {torch.__version__} refuses it "
            f"({type(error).__name__}: {reason}); --format config,weights holds the network itself"
        ) from error
    finally:
        logging.disable(disabled)


def weights(trained: Trained) -> list[Made]:
    """The weights after the last epoch, by their state-dict names, as safetensors."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in trained.checkpoint.module.items()}
    about = {"arch_id": trained.arch.id, "study": trained.study, "trial": str(trained.number)}
    return [Made(".safetensors", save(tensors, metadata=about))]


def torch_export(trained: Trained) -> list[Made]:
    """A program of torch.export with any batch size, for torch.export.load."""
    found, buffer = program(trained), io.BytesIO()
    with quietly(trained, "torch.export"):
        torch.export.save(found, buffer)
    return [Made(".pt2", buffer.getvalue())]


def executorch(trained: Trained) -> list[Made]:
    """An ExecuTorch program for batches of one image, on the XNNPACK kernels of phones' processors; compared with
    torch in ExecuTorch's own runtime.
    """
    _ = trained.images  # what cannot be had is said before the long work
    with quietly(trained, "ExecuTorch's exporter"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime

        edge = to_edge_transform_and_lower(program(trained, batch=1), partitioner=[XnnpackPartitioner()])
        content = bytes(edge.to_executorch().buffer)
        method = Runtime.get().load_program(content).load_method("forward")

    def run(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        pixels = torch.from_numpy(images).float().div_(255)
        return np.concatenate([method.execute([image[None].contiguous()])[0].numpy().copy() for image in pixels])

    found = check(trained, run, f"{trained.stem}.pte")
    return [Made(".pte", content, {"parity_executorch": asdict(found)})]
