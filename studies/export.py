"""Taking networks out of a study: the formats, and files that are written all or none."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mnet_search.models.arch import MnetError
from mnet_search.models.remote_files import RemoteFolder, is_url, without_login
from mnet_search.models.tables import lookup
from mnet_search.spaces.yamlfile import dump
from mnet_search.studies import export_index
from mnet_search.studies.configs import (
    CONFIG_VERSION,
    ArchEntry,
    TrainConfig,
    config_of,
    data_facts,
    read_config,
    select,
)
from mnet_search.studies.model_card import card
from mnet_search.studies.store import Store
from mnet_search.studies.trained import FromData, Made, Trained, stem

__all__ = [
    "CONFIG_VERSION",
    "FORMATS",
    "ArchEntry",
    "Asked",
    "Exported",
    "Format",
    "TrainConfig",
    "config_of",
    "data_facts",
    "export_members",
    "export_to",
    "read_config",
    "select",
]

INT8_SUFFIX = "-int8.onnx"
DEFAULT_FORMATS = ("config", "weights", "card")


@dataclass(frozen=True)
class Asked:
    """What an export is to hold beside its networks: formats by name, 8-bit ONNX files, an index, and whether files
    that exist are replaced. `from_data` gives the images that ONNX and ExecuTorch are checked on.
    """

    formats: tuple[str, ...] = DEFAULT_FORMATS
    int8: bool = False
    index: bool = False
    force: bool = False
    from_data: FromData | None = None


@dataclass(frozen=True)
class Format:
    """`make` gives the files of one network, named by `suffixes`, from it and the files that were made before it.

    `weights` says that a checkpoint is needed. `packages` are not installed by default but with the extra `extra`;
    `instead` is a format that does without.
    """

    make: Callable[[Trained, Sequence[Made], Asked], list[Made]]
    suffixes: tuple[str, ...]
    weights: bool = True
    extra: str = ""
    packages: tuple[str, ...] = ()
    instead: str = ""


@dataclass(frozen=True)
class Exported:
    """The paths or URLs of the files written, and each network as the index has it."""

    files: list[str]
    networks: list[dict[str, Any]] = field(default_factory=list)


def export_to(
    store: Store, study: str, rows: pd.DataFrame, formats: Iterable[str], where: str, *, force: bool = False
) -> list[str]:
    """Write formats of the rows into a folder that is a path or a URL; the paths or URLs of the files. Raises MnetError
    as `export_members` does.
    """
    return export_members(store, study, rows, where, Asked(tuple(formats), force=force)).files


def export_members(store: Store, study: str, rows: pd.DataFrame, where: str, asked: Asked) -> Exported:
    """Write what is asked of each row into the folder or URL `where`, as STUDY-trialN.*: all files or none.

    Raises MnetError for an unknown format, a package that is missing, a file that exists (unless `asked.force`), a
    trial without weights, a checkpoint that is gone or damaged, a network that a format cannot hold or that computes
    something else there, and a folder that cannot be written.
    """
    formats = _known(asked)
    _check_weights(store, study, rows, formats)
    _check_packages(formats)
    suffixes = [suffix for _, format_ in formats for suffix in _suffixes(format_, asked)]
    names = [f"{stem(study, int(number))}{suffix}" for number in rows["number"] for suffix in suffixes]
    names += export_index.NAMES if asked.index else ()
    make = _Making(store, study, rows, [format_ for _, format_ in formats], asked)
    if is_url(where):
        return _to_url(make, names, where, force=asked.force)
    return _to_folder(make, names, Path(where), force=asked.force)


def _known(asked: Asked) -> list[tuple[str, Format]]:
    """The formats in the order of the table, each once."""
    names = dict.fromkeys(name.strip() for name in asked.formats)
    found = [(name, lookup(FORMATS, name, "export format")) for name in names]
    for name, format_ in found:
        if not isinstance(format_, Format):
            raise MnetError(f"export format {name!r} is a {type(format_).__name__}; it must be a Format")
    if asked.int8 and "onnx" not in names:
        raise MnetError("--int8 makes the ONNX file smaller: add onnx to --format, as in --format config,weights,onnx")
    rank = {name: float(place) for place, name in enumerate(FORMATS)}
    own = rank["card"] - 0.5  # the card tells of all others, a user's own too
    return sorted(found, key=lambda pair: rank.get(pair[0], own))


def _suffixes(format_: Format, asked: Asked) -> list[str]:
    return [suffix for suffix in format_.suffixes if suffix != INT8_SUFFIX or asked.int8]


def _check_weights(store: Store, study: str, rows: pd.DataFrame, formats: Sequence[tuple[str, Format]]) -> None:
    if not any(format_.weights for _, format_ in formats):
        return
    for _, row in rows.iterrows():
        if not row["checkpoint"]:
            by_function = store.row(study)["space"].get("evaluate") is not None
            why = "it was evaluated by a function and not trained here" if by_function else "it was not trained here"
            raise MnetError(f"trial {row['number']} has no weights: {why}; --format config needs none")


def _check_packages(formats: Sequence[tuple[str, Format]]) -> None:
    for name, format_ in formats:
        for package in format_.packages:
            try:
                importlib.import_module(package)
            except ImportError:
                other = f" (or take --format {format_.instead}, which needs none)" if format_.instead else ""
                raise MnetError(
                    f"--format {name} needs the package {package}, which is not installed; install it with: "
                    f"pip install 'mnet-search[{format_.extra}]'{other}"
                ) from None


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Making:
    """Files of every network in turn, then the index."""

    store: Store
    study: str
    rows: pd.DataFrame
    formats: list[Format]
    asked: Asked

    def into(self, folder: Path) -> list[dict[str, Any]]:
        """Write every file into an empty folder; the entries of the index. Raises OSError, MnetError."""
        entries = []
        for _, row in self.rows.iterrows():
            trained = Trained.read(self.store, self.study, row, self.asked.from_data)
            made: list[Made] = []
            for format_ in self.formats:
                new = format_.make(trained, made, self.asked)
                for one in new:
                    _write(folder / f"{trained.stem}{one.suffix}", one.content)
                made += new
            entries.append(export_index.entry(trained, made))
        if self.asked.index:
            texts = (export_index.as_json(self.study, entries), export_index.as_markdown(self.study, entries))
            for name, text in zip(export_index.NAMES, texts, strict=True):
                _write(folder / name, text.encode())
        return entries


def _write(path: Path, content: bytes) -> None:
    from mnet_search.models.checkpoints import write_atomically

    write_atomically(path, content)


def _to_folder(make: _Making, names: list[str], folder: Path, *, force: bool) -> Exported:
    """Files are made in a hidden folder inside, on the same disk, and moved once all are whole."""
    paths = [folder / name for name in names]
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None and not force:
        raise MnetError(f"{taken} exists already; give --force to replace it, or another folder with -o")
    if any(path.is_dir() for path in paths):
        raise MnetError(f"{taken} is a folder; give another one with -o")
    try:
        with _made(folder), tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as hidden:
            entries = make.into(Path(hidden))
            for path in paths:
                (Path(hidden) / path.name).replace(path)
    except OSError as error:
        raise MnetError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return Exported([str(path) for path in paths], entries)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, and those above it; those that are new are taken away again where nothing comes of them."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _to_url(make: _Making, names: list[str], where: str, *, force: bool) -> Exported:
    remote = RemoteFolder(where)
    there = remote.names()
    taken = next((name for name in names if name in there), None)
    if taken is not None and not force:
        raise MnetError(
            f"{without_login(remote.url)}/{taken} exists already; give --force to replace it, or another folder with -o"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="mnet-search-") as folder:
            entries = make.into(Path(folder))
            for name in names:
                remote.write(name, (Path(folder) / name).read_bytes())
    except OSError as error:
        raise MnetError(
            f"{error.filename or tempfile.gettempdir()}: cannot be written: {error.strerror or error}"
        ) from None
    return Exported([remote.url_of(name) for name in names], entries)


# ---------------------------------------------------------------- formats


def _config(trained: Trained, _made: Sequence[Made], _asked: Asked) -> list[Made]:
    head = f"# A network of study {trained.study}; train it with: mnet-search train {trained.stem}.yaml\n"
    return [Made(".yaml", (head + dump(dict(trained.config))).encode())]


def _weights(trained: Trained, _made: Sequence[Made], _asked: Asked) -> list[Made]:
    from mnet_search.studies.torch_files import weights

    return weights(trained)


def _torch_export(trained: Trained, _made: Sequence[Made], _asked: Asked) -> list[Made]:
    from mnet_search.studies.torch_files import torch_export

    return torch_export(trained)


def _onnx(trained: Trained, _made: Sequence[Made], asked: Asked) -> list[Made]:
    from mnet_search.studies.onnx_files import make

    return make(trained, int8=asked.int8)


def _executorch(trained: Trained, _made: Sequence[Made], _asked: Asked) -> list[Made]:
    from mnet_search.studies.torch_files import executorch

    return executorch(trained)


def _card(trained: Trained, made: Sequence[Made], _asked: Asked) -> list[Made]:
    return [Made(".md", card(trained, made).encode())]


FORMATS: dict[str, Format] = {
    "config": Format(_config, (".yaml",), weights=False),
    "weights": Format(_weights, (".safetensors",)),
    "torch_export": Format(_torch_export, (".pt2",)),
    "onnx": Format(_onnx, (".onnx", INT8_SUFFIX), extra="onnx", packages=("onnx", "onnxruntime", "onnxscript")),
    "executorch": Format(_executorch, (".pte",), extra="executorch", packages=("executorch",), instead="torch_export"),
    "card": Format(_card, (".md",), weights=False),
}
