"""One trained network on its way out of a study: what every export format is made from, and what a format gives back.

Nothing here imports torch until weights are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.families import create
from mnet_search.models.remote_files import checkpoint_file
from mnet_search.spaces.schema import Data
from mnet_search.studies import database as db
from mnet_search.studies.configs import config_of
from mnet_search.studies.frame import curves

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from mnet_search.models.checkpoints import Checkpoint
    from mnet_search.studies.store import Store

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """uint8 (N, C, H, W) at the network's resolution and not normalised, and the classes (N,) of the images."""

    images: Pixels
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ExportImages:
    """A trial's own images, for checks and calibration.

    `mean` and `std` are per channel, as fractions 0..1 of white; `normalise` is what training does with a batch, uint8
    to float32. `checked` are validation images, `calibration` training images and never others; `validation` gives all
    validation images, batch by batch.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    checked: LabelledImages
    calibration: LabelledImages
    validation: Callable[[], Iterator[LabelledImages]]
    normalise: Callable[[Pixels], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class FromData:
    """What a study does not hold: the images of a trial, and the licence of its data. Either may raise MnetError."""

    images: Callable[[Trained], ExportImages]
    licence: Callable[[Data], str]


@dataclass(frozen=True, eq=False)
class Made:
    """One file of an export: NAME and `suffix` name it. `facts` is what was found while making it, as plain values for
    the model card, the index and the screen: of ONNX files `parity` and `int8`.
    """

    suffix: str
    content: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trained:
    """One finished trial: `config` as it is exported, `row` of the study's frame, `curve` one row an epoch,
    `environment` where its figures were taken. Files are named by `stem`.
    """

    study: str
    number: int
    stem: str
    config: Mapping[str, Any]
    row: pd.Series
    curve: pd.DataFrame
    environment: Mapping[str, Any]
    from_data: FromData | None = None

    @staticmethod
    def read(store: Store, study: str, row: pd.Series, from_data: FromData | None) -> Trained:
        number = int(row["number"])
        every = curves(store, study)
        query = select(db.trials.c.environment).where(
            db.trials.c.study_id == store.row(study)["study_id"], db.trials.c.number == number
        )
        with store.read() as connection:
            environment = dict(connection.execute(query).scalar() or {})
        curve = every[every["number"] == number].drop(columns="number")
        config = config_of(store, study, row)
        return Trained(study, number, stem(study, number), config, row, curve, environment, from_data)

    @cached_property
    def arch(self) -> Arch:
        """Raises MnetError where this version makes another network of the same options."""
        arch = create(self.config["arch"]["family"], **self.config["arch"]["options"])
        if arch.id != self.config["arch"]["arch_id"]:
            raise MnetError(
                f"trial {self.number}: its options give the network {arch.id} in this version, not "
                f"{self.config['arch']['arch_id']}; use the mnet-search that trained it"
            )
        return arch

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Verified against its recorded SHA-256. Raises MnetError where it is gone, damaged or of another network."""
        from mnet_search.models.checkpoints import load_checkpoint

        source = self.row["checkpoint"]
        with contextlib.ExitStack() as stack:
            try:
                found = stack.enter_context(checkpoint_file(source, self.row["checkpoint_sha256"]))
                return load_checkpoint(found)
            except FileNotFoundError:
                raise MnetError(
                    f"the checkpoint of trial {self.number} is gone ({source}); --format config needs none"
                ) from None
            except OSError as error:
                raise MnetError(
                    f"the checkpoint of trial {self.number} cannot be read ({source}: {error.strerror or error}); "
                    "--format config needs none"
                ) from None
            except MnetError as error:
                raise type(error)(f"trial {self.number}: {error}; --format config needs none") from None

    @cached_property
    def module(self) -> nn.Module:
        """The trained network on the CPU, in float32 and inference mode, whatever precision it was trained in."""
        from mnet_search.models.factory import build

        module = build(self.arch, self.config["seed"]).float()
        module.load_state_dict(self.checkpoint.module)
        for part in module.modules():
            if hasattr(part, "inplace"):  # the same function; torch's exporters take twice as long to get rid of it
                part.inplace = False  # type: ignore[assignment]
        return module.eval().requires_grad_(False)

    @cached_property
    def images(self) -> ExportImages:
        """Raises MnetError where they cannot be had."""
        if self.from_data is None:
            raise MnetError("this export needs the study's images; use `mnet-search export`, which reads them")
        return self.from_data.images(self)

    @property
    def about_images(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
        """Mean and std by which images are normalised, and the names of the classes: from the checkpoint, or from the
        images where it is of before 0.2.
        """
        known = self.checkpoint.network
        if known is None:
            return self.images.mean, self.images.std, self.images.class_names
        return tuple(known["mean"]), tuple(known["std"]), tuple(known["class_names"])


def stem(study: str, number: int) -> str:
    """What the files of a trial are called, without anything that would lead out of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{study}-trial{number}")
