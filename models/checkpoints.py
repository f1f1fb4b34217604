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

FORMAT = 2
BEST, PREVIOUS = "best.pt", "previous.pt"


class CheckpointError(MnetError):
    """A checkpoint that is damaged, or belongs to another run."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A stored part of a run: `run` says which one, `rows` are its learning curve, tensors lie on the CPU.

    `optimiser` is what it remembers, in its parameters' order; None once the run is complete. `network` is enough to
    build the network again and to feed it: family, options, class names, mean and std of its training images.
    """

    run: dict[str, Any]
    rows: list[dict[str, Any]]
    module: dict[str, Tensor]
    optimiser: list[list[Tensor]] | None = None
    network: dict[str, Any] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, best: bool = False) -> str:
    """Replace the file at `path` in one step and return its SHA-256, which is recorded beside it in `path`.json.

    The file before it stays as previous.pt until the run is complete; with `best`, the new one is also best.pt. The
    record goes first and names the old file's sum too, so that a stop between the two leaves a pair that agrees. Raises
    OSError with errno and path; what was there before can then still be loaded.
    """
    previous = path.with_name(PREVIOUS)
    if checkpoint.optimiser is not None:
        _also_as(path, previous)
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
    if best:
        keep_best(path)
    if checkpoint.optimiser is None:
        for old in (previous, record_path(previous)):
            old.unlink(missing_ok=True)
    return sha256


def keep_best(path: Path) -> None:
    """Make the checkpoint at `path` best.pt as well."""
    _also_as(path, path.with_name(BEST))


def _also_as(path: Path, other: Path) -> None:
    """Give a checkpoint and its record a second name, without a second copy where the file system can; files are only
    ever replaced, never written into.
    """
    for source, target in ((record_path(path), record_path(other)), (path, other)):
        if not source.exists():
            return
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # no hard links here
            write_atomically(target, source.read_bytes())
        else:
            temporary.replace(target)
            temporary.unlink(missing_ok=True)  # POSIX leaves it where both are names of one file already


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
        if version == 1:  # from before 0.2: one optimiser
            momenta = stored.pop("momenta")
            stored["optimiser"] = None if momenta is None else [momenta]
        elif version != FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {version!r}; this version reads 1 and {FORMAT}")
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
    """What the file at `path`, else the one before it, else the best one holds of `run`; None where there is nothing to
    go on from.

    A file that cannot be used is renamed to NAME.refused, replacing an older one, and the reason logged as a warning;
    what is used in its place is at `path` then.
    """
    for rest in path.parent.glob(".*.tmp"):  # of a run that was killed while it wrote
        rest.unlink(missing_ok=True)
    names = (path, path.with_name(PREVIOUS), path.with_name(BEST))
    for number, candidate in enumerate(names):
        try:
            found = load_checkpoint(candidate, run)
        except FileNotFoundError:
            continue
        except CheckpointError as refusal:
            aside = candidate.with_name(candidate.name + ".refused")
            candidate.replace(aside)
            left = any(other.exists() for other in names[number + 1 :])
            then = "the one before it is tried" if left else "training starts anew"
            log.warning("%s; it is kept as %s and %s", refusal, aside.name, then)
        else:
            if candidate != path:
                _also_as(candidate, path)
            return found
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
