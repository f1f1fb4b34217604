"""What `export` does beside writing files: it reads a trial's images where a format is checked on them, and says what
was found.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mnet_search.models.arch import MnetError
from mnet_search.search.printing import echo, print_json
from mnet_search.spaces import schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from mnet_search.search.data import Data, DataOptions
    from mnet_search.search.evaluation import Images
    from mnet_search.studies.export import Asked
    from mnet_search.studies.store import Store
    from mnet_search.studies.trained import ExportImages, LabelledImages, Trained

MAX_CHECKED, MAX_CALIBRATION = 1000, 512
STREAM_BATCH = 64


def exported(
    store: Store, name: str, which: str, limits: Mapping[str, float], where: str, asked: Asked, *, as_json: bool
) -> None:
    """Write the export and name its files, with what the checks found."""
    from mnet_search.studies.export import export_members, select
    from mnet_search.studies.frame import load

    rows = select(load(store, name), store.objectives(name), which, limits)
    found = export_members(store, name, rows, where, asked)
    if as_json:
        print_json({"files": found.files, "networks": found.networks})
        return
    for path in found.files:
        echo(path)
    _print_checks(found.networks)
    config = next((path for path in found.files if path.endswith(".yaml")), None)
    if config:
        echo(f"\nNext:  mnet-search train {shlex.quote(config)}")


def _print_checks(networks: list[dict[str, Any]]) -> None:
    from mnet_search.studies.model_card import int8_sentence, parity_sentence

    kinds = {"parity": ("ONNX", parity_sentence), "parity_executorch": ("ExecuTorch", parity_sentence)}
    for network in networks:
        for key, (kind, sentence) in (kinds | {"int8": ("8 bits", int8_sentence)}).items():
            if key in network:
                echo(f"trial {network['trial']}, {kind}: {sentence(network[key])}")


# ---------------------------------------------------------------- a trial's own images


def licence_of(data: schema.Data) -> str:
    """Raises DataError where a file must be looked at and is not there."""
    from mnet_search.search.data import describe
    from mnet_search.search.sources import data_options

    return describe(data_options(data)).licence


def images_of(trained: Trained) -> ExportImages:
    """The images that a trial was trained and validated on. Raises MnetError where they cannot be had, or are others
    now.
    """
    from mnet_search.search.data import load, normalise
    from mnet_search.search.sources import data_options
    from mnet_search.studies.trained import ExportImages

    digest = trained.checkpoint.run["data"]
    data = _read(data_options(schema.Data.model_validate(trained.config["data"])), digest, trained.number, load)
    resolution = trained.arch.input.height

    def normalised(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        import torch

        floats: npt.NDArray[np.float32] = normalise(torch.from_numpy(pixels), data.mean, data.std).numpy()
        return floats

    return ExportImages(
        mean=data.mean,
        std=data.std,
        class_names=data.facts.class_names,
        checked=_some(data.validation, resolution, MAX_CHECKED),
        calibration=_some(data.train, resolution, MAX_CALIBRATION),
        validation=lambda: _all(data.validation, resolution),
        normalise=normalised,
    )


def _read(options: DataOptions, digest: str, trial: int, load: Any) -> Data:
    from mnet_search.search.data import DataError
    from mnet_search.search.data_cache import pinned

    none_needed = "--format config,weights,torch_export needs no images"
    try:
        data: Data = load(pinned(options, digest))
    except DataError as error:
        raise MnetError(f"an export is checked on the trial's images: {error} ({none_needed})") from None
    if data.digest != digest:
        raise MnetError(
            f"trial {trial} was trained on other images (their digest was {digest[:12]}, it is {data.digest[:12]} "
            f"now); put them back ({none_needed})"
        )
    return data


def _some(images: Images, resolution: int, count: int) -> LabelledImages:
    """At most `count` images, evenly spaced over the classes in turn, so that each has its share."""
    import numpy as np
    import torch

    order = np.argsort(images.labels.cpu().numpy(), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)]
    parts = list(_batches(images, resolution, torch.from_numpy(np.sort(chosen))))
    return _joined(parts)


def _all(images: Images, resolution: int) -> Iterator[LabelledImages]:
    import torch

    yield from _batches(images, resolution, torch.arange(len(images)))


def _batches(images: Images, resolution: int, positions: Tensor) -> Iterator[LabelledImages]:
    import torch

    from mnet_search.studies.trained import LabelledImages

    placed = images.at(resolution, torch.device("cpu"))
    for batch, labels in placed.batches(positions.split(STREAM_BATCH)):
        yield LabelledImages(batch.contiguous().numpy(), labels.numpy())


def _joined(parts: list[LabelledImages]) -> LabelledImages:
    import numpy as np

    from mnet_search.studies.trained import LabelledImages

    return LabelledImages(
        np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts])
    )
