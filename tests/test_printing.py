"""Files that commands write, and tables that are not cropped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.table import Table

from mnet_search.models.arch import MnetError
from mnet_search.search.printing import check_file, print_table, print_whole, write_file


def test_a_file_is_written_and_replaced_only_where_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.HTML"
    write_file(path, b"one", "-o", force=False, endings=(".html",))
    assert path.read_bytes() == b"one"
    with pytest.raises(MnetError) as caught:
        write_file(path, b"two", "--plot", force=False)
    assert str(caught.value) == f"{path}: exists already; replace it with --force, or name another with --plot"
    assert path.read_bytes() == b"one"
    write_file(path, b"two", "--plot", force=True)
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.HTML"]  # noqa: PTH208


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("name", "endings", "text"),
    [
        ("none/x", (), "{}/none/x: there is no folder '{}/none'; make it, or name another with -o"),
        ("file/x", (), "{}/file/x: there is no folder '{}/file'; make it, or name another with -o"),
        ("x.png", (".html",), "-o {}/x.png: its ending says the form, and is .png; write .html"),
        ("x", (".csv", ".parquet"), "-o {}/x: its ending says the form, and is none; write .csv or .parquet"),
        ("folder", (), "{}/folder: is a folder; name a file with -o"),
        ("x" * 300, (), "{}/" + "x" * 300 + ": cannot be written (File name too long); name another with -o"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, name: str, endings: tuple[str, ...], text: str, *, force: bool
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MnetError) as caught:
        write_file(tmp_path / name, b"", "-o", force=force, endings=endings)
    assert str(caught.value) == text.replace("{}", str(tmp_path))
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"], "nothing is made"


def test_a_check_beforehand_writes_nothing(tmp_path: Path) -> None:
    check_file(tmp_path / "x.csv", "-o", force=False, endings=(".csv",))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- tables


def table_of(width: int) -> Table:
    table = Table("name", "figure", box=None, pad_edge=False)
    table.add_row("x" * width, "0.125")
    return table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "40", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("terminal")
def test_a_table_that_fits_is_one_and_others_are_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = [[["x = 1"], ["95 %:", "a 1 to 2,", "b -10.125 to 20,", "c 3 to 4"], ["figure 0.125"]]]
    print_whole(table_of(20), blocks)
    assert capsys.readouterr().out.splitlines()[1].split() == ["x" * 20, "0.125"]
    print_whole(table_of(40), blocks)
    assert capsys.readouterr().out == "x = 1\n  95 %: a 1 to 2, b -10.125 to 20,\n    c 3 to 4\n  figure 0.125\n"


@pytest.mark.usefixtures("terminal")
def test_a_part_that_is_longer_than_a_line_is_broken_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_whole(table_of(40), [[["word " * 9 + "0.125"]]])
    assert capsys.readouterr().out == "word " * 7 + "word\n    word 0.125\n"


def test_in_a_pipe_lines_are_as_long_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(table_of(400))
    assert capsys.readouterr().out.splitlines()[1].split() == ["x" * 400, "0.125"]
