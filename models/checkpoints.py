"""Checkpoints that are either whole or refused: atomic writes, a SHA-256 beside each, and the description of the run.

Knows nothing of training; needs torch alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnet_search.models.arch import MnetError

log = logging.getLogger(__name__)

FORMAT = 1


class CheckpointError(MnetError):
    """A checkpoint that is damaged, or belongs to another run."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A stored part of a run: `run` says which one, `rows` are its learning curve, tensors lie on the CPU.

    `momenta` is the optimiser's state, in its parameters' order; None once the run is complete.
    """

    run: dict[str, Any]
    rows: list[dict[str, Any]]
    module: dict[str, Tensor]
    momenta: list[Tensor] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> str:
    """Replace the file at `path` in one step and return its SHA-256, which is recorded beside it in `path`.json.

    The record goes first and names the old file's sum too, so that a stop between the two leaves a pair that agrees.
    Raises OSError with errno and path; what was there before can then still be loaded.
    """
    buffer = io.BytesIO()  # torch.save on a file would hide the errno of a full disk
    torch.save({"format": FORMAT, **vars(checkpoint)}, buffer)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    record = {
        "sha256": sha256,
        "previous": hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None,
        "epochs": len(checkpoint.rows),
        "run": checkpoint.run,
    }
    write_atomically(record_path(path), json.dumps(record, indent=1).encode())
    write_atomically(path, content)
    return sha256


def load_checkpoint(path: Path, run: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read and verify a checkpoint; with `run`, it must be one of that run.

    Raises FileNotFoundError where there is none, CheckpointError where its bytes are not the recorded ones, or its run
    is another one.
    """
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        record = json.loads(record_path(path).read_bytes())
        recorded = (record["sha256"], record["previous"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be verified, for its record {record_path(path).name} cannot be read "
            f"({type(error).__name__}: {error})"
        ) from error
    if sha256 not in recorded:
        raise CheckpointError(
            f"checkpoint {path} is damaged: the SHA-256 of its {len(content)} bytes is {sha256[:12]}..., "
            f"{recorded[0][:12]}... is recorded"
        )
    try:
        stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version, stored_run = stored.pop("format"), stored["run"]
        if version != FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {version!r}; this version reads {FORMAT}")
        checkpoint = Checkpoint(**stored)
    except (RuntimeError, pickle.UnpicklingError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of mnet-search ({type(error).__name__}: {error})") from error
    for key, wanted in (run or {}).items():
        if stored_run.get(key) != wanted:
            raise CheckpointError(
                f"checkpoint {path} is from another run: its {key} is {stored_run.get(key)!r}, this run's {wanted!r}"
            )
    return checkpoint


def resume_checkpoint(path: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """What `path` holds of `run`; None where there is nothing to go on from.

    A file that cannot be used is renamed to NAME.refused, replacing an older one, and the reason logged as a warning.
    """
    try:
        return load_checkpoint(path, run)
    except FileNotFoundError:
        return None
    except CheckpointError as refusal:
        aside = path.with_name(path.name + ".refused")
        path.replace(aside)
        log.warning("%s; it is kept as %s and training starts anew", refusal, aside.name)
        return None


def record_path(checkpoint: Path) -> Path:
    """Where the SHA-256 of a checkpoint is recorded."""
    return checkpoint.with_name(checkpoint.name + ".json")


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary name in the same folder, fsync, rename: `path` holds the old bytes or the new ones, never a part.

    Raises OSError with errno and `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else the rename itself may be lost with the power
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
