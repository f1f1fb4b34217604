"""Files at URLs: written, read, waited for and refused; what is shown of a URL; exports from and to one."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from mnet_search.models import remote_files
from mnet_search.models.arch import MnetError
from mnet_search.models.remote_files import (
    RemoteError,
    RemoteFolder,
    checkpoint_file,
    is_url,
    scratch_folder,
    without_login,
    without_password,
)
from mnet_search.studies import frame as frames
from mnet_search.studies.export import export_to
from mnet_search.studies.store import Store

from processes import search


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch folders go where this test alone is."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty folder in this process's memory."""
    MemoryFileSystem.store.clear()
    yield "memory://runs/trial"
    MemoryFileSystem.store.clear()


# ---------------------------------------------------------------- files


def test_a_file_is_replaced_copied_read_and_removed(tmp_path: Path, memory: str) -> None:
    for url in (f"file://{tmp_path}/new/folder", memory):
        folder = RemoteFolder(f"{url}/")
        assert folder.names() == set()
        with pytest.raises(FileNotFoundError):
            folder.read("a")
        folder.write("a", b"old")
        folder.write("a", b"content")
        assert folder.copy("a", "b") and not folder.copy("gone", "c")
        assert (folder.read("a"), folder.read("b"), folder.names()) == (b"content", b"content", {"a", "b"})
        assert [folder.tail("a", n)[0] for n in (4, 99)] == [b"tent", b"content"]
        folder.remove("a")
        folder.remove("a")
        assert folder.names() == {"b"}
        assert folder.url_of("b") == f"{url}/b"


def test_a_failure_that_passes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remote_files, "WAITS_S", (0.1, 0.4, 30.0))
    (tmp_path / "shared").write_text("a file in its place")
    mended = threading.Timer(0.2, (tmp_path / "shared").unlink)
    mended.start()
    with caplog.at_level(logging.INFO):
        RemoteFolder(f"file://{tmp_path}/shared/trial").write("a", b"1")
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == [
        "once more in 0.1 s",
        "once more in 0.4 s",
    ]
    assert (tmp_path / "shared" / "trial" / "a").read_bytes() == b"1"


def test_without_fsspec_a_url_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(
        RemoteError, match=r"^s3://b: folders that are URLs need a package that is missing: install fssp"
    ):
        RemoteFolder("s3://b")


# ---------------------------------------------------------------- URLs


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("s3://b/runs", "file:///runs", "memory://runs", "gs://b", "abfs+x://b")))
    assert not any(map(is_url, ("runs", "/runs", "C://runs", "s3:/b", Path("s3://b"), "", "a/b://c")))


def test_passwords_are_shown_to_nobody_and_not_kept() -> None:
    url = "sftp://me:p@ss:word@host:22/runs/x@y"
    assert without_login(f"{url}: no ({url!r})") == "sftp://host:22/runs/x@y: no ('sftp://host:22/runs/x@y')"
    assert without_password(url) == "sftp://me@host:22/runs/x@y"
    assert [without_password(same) for same in ("s3://b:1/x", "sftp://me@host/x")] == ["s3://b:1/x", "sftp://me@host/x"]
    assert RemoteFolder("memory://me:pw@a/b").url_of("last.pt") == "memory://me@a/b/last.pt"


def test_scratch_folders_are_this_users_alone(tmp_path: Path) -> None:
    folder = scratch_folder("memory://a")
    assert folder == scratch_folder("memory://a/") != scratch_folder("memory://b")
    assert folder.parent == Path(tempfile.gettempdir()) / f"mnet-search-{os.geteuid()}"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    folder.parent.rmdir()
    folder.parent.symlink_to(tmp_path)
    message = "mnet-search-.* is somebody else's; remove it, or set TMPDIR to a folder of your own"
    with pytest.raises(RemoteError, match=message):
        scratch_folder("memory://a")


def test_a_checkpoint_of_this_machine_is_read_where_it_lies(tmp_path: Path) -> None:
    with checkpoint_file(str(tmp_path / "last.pt"), "cafe") as path:
        assert path == tmp_path / "last.pt"


def test_a_checkpoint_at_a_url_is_that_of_the_study_or_refused(memory: str) -> None:
    with pytest.raises(FileNotFoundError), checkpoint_file(f"{memory}/last.pt"):
        pass
    RemoteFolder(memory).write("last.pt", b"other")
    message = r"^memory://runs/trial/last.pt is not the checkpoint that the study knows: the SHA-256 of its 5 bytes is "
    with pytest.raises(RemoteError, match=message), checkpoint_file(f"{memory}/last.pt", "cafe" * 16):
        pass


# ---------------------------------------------------------------- export


def test_weights_are_exported_from_a_url_and_to_one(tmp_path: Path, memory: str) -> None:

    search(tmp_path, n_trials=1)
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        rows = frames.load(store, "tiny")
        names = ["tiny-trial0.yaml", "tiny-trial0.safetensors"]
        formats = ["config", "weights"]
        local = export_to(store, "tiny", rows, formats, str(tmp_path / "exports"))
        assert local == [str(tmp_path / "exports" / name) for name in names]
        folder = Path(rows["checkpoint"].iloc[0]).parent
        for name in ("last.pt", "last.pt.json"):
            RemoteFolder(memory).write(name, (folder / name).read_bytes())
        rows["checkpoint"] = f"{memory}/last.pt"
        assert export_to(store, "tiny", rows, formats, "memory://out/") == [f"memory://out/{name}" for name in names]
        out = RemoteFolder("memory://out")
        assert out.read(names[0]) == Path(local[0]).read_bytes()
        (tmp_path / "fetched").write_bytes(out.read(names[1]))
        fetched, here = load_file(tmp_path / "fetched"), load_file(local[1])
        assert all((fetched[key] == here[key]).all() for key in here) and fetched.keys() == here.keys()
        with pytest.raises(MnetError, match=r"^memory://out/tiny-trial0.yaml exists already; give --force"):
            export_to(store, "tiny", rows, formats, "memory://out")
        export_to(store, "tiny", rows, formats, "memory://out", force=True)
        rows["checkpoint_sha256"] = "cafe" * 16
        with pytest.raises(RemoteError, match="is not the checkpoint that the study knows"):
            export_to(store, "tiny", rows, ["weights"], "memory://other")
        rows["checkpoint"] = f"{memory}/gone/last.pt"
        with pytest.raises(MnetError, match=r"the checkpoint of trial 0 is gone \(memory://runs/trial/gone"):
            export_to(store, "tiny", rows, ["weights"], "memory://other")
    assert json.loads(RemoteFolder(memory).read("last.pt.json"))["epochs"] == 2
