"""Rows of an import one by one: what belongs to a space, and how bad files, rows, maps and commands are answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_import import NEW, SPACE, plan_of, space_of, written

from mnet_search.models.arch import MnetError
from mnet_search.spaces.schema import Choice, Range
from mnet_search.studies.import_sources import read_csv
from mnet_search.studies.importing import Column, Constant, member, resolve

from processes import call


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path)


@given(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from(["{}", "{:.2f}", "{:.3e}", " {} "]))
def test_a_number_is_the_same_however_it_is_written(value: float, form: str) -> None:
    assert member(Choice(values=[0.1, 0.2, 0.3]), form.format(value).strip()) == value


@pytest.mark.parametrize(
    ("parameter", "cell", "value"),
    [
        (Choice(values=[True, False]), "true", True),
        (Choice(values=[True, False]), False, False),
        (Choice(values=[1, 2]), "2.0", 2),
        (Choice(values=[1, 2]), True, None),
        (Choice(values=["1", "2"]), "2", "2"),
        (Choice(values=["a"]), "A", None),
        (Range(min=20, max=32, step=4), "24.0", 24),
        (Range(min=20, max=32, step=4), "22", None),
        (Range(min=20, max=32, step=4), "36", None),
        (Range(min=0.1, max=0.7, step=0.2), "0.3", 0.3),
        (Range(min=0.001, max=0.1, log=True), "0.0123", 0.0123),
        (Range(min=8, max=64, log=True), "9", 9),
        (Range(min=8, max=64, log=True), "9.5", None),
        (Range(min=0.0, max=1.0), "nan", None),
        (Range(min=0, max=1000), "1_0", None),
        (Range(min=0.0, max=1.0), "", None),
        (Range(min=0.0, max=1.0), None, None),
    ],
)
def test_what_belongs_to_a_parameter(parameter: Choice | Range, cell: object, value: object) -> None:
    found = member(parameter, cell)
    assert (found, type(found)) == (value, type(value))


# ---------------------------------------------------------------- bad input

HEAD = "width,resolution,block,expand,acc\n"
GOOD = "0.1,20,separable,,0.7\n"


@pytest.mark.parametrize(
    ("rows", "maps", "text"),
    [
        ("0.4,20,separable,,0.7\n", ("accuracy=acc",), "row 1: width 0.4 is not of the space (0.1, 0.2, 0.3); nothing"),
        (GOOD + "0.1,22,separable,,0.7\n", ("accuracy=acc",), "row 2: resolution 22 is not of the space (20 to 32 in"),
        ("0.1,20,,,0.7\n", ("accuracy=acc",), "row 1: block is empty, and the network needs one of the space"),
        ("0.1,20,inverted_residual,,0.7\n", ("accuracy=acc",), "row 1: expand is empty"),
        (
            "0.1,20,separable,,71\n",
            ("accuracy=acc",),
            "accuracy 71 is no share of images, which is 0 to 1; write",
        ),
        ("0.1,20,separable,,71\n", ("accuracy=acc",), "write --map accuracy=COLUMN% for percent; nothing was written"),
        ("0.1,20,separable,,-0.1\n", ("accuracy=acc",), "row 1: accuracy -0.1 is no share of images, which is 0 to 1;"),
        ("0.1,20,separable,,nan\n", ("accuracy=acc",), "row 1: accuracy is nan, and a finite number is needed"),
        ("0.1,20,separable,,inf\n", ("accuracy=acc",), "row 1: accuracy is inf, and a finite number is needed"),
        ("0.1,20,separable,,good\n", ("accuracy=acc",), "row 1: accuracy is good, and a finite number is needed"),
        ("0.1,20,separable,,\n", ("accuracy=acc",), "row 1: accuracy is empty, and it is an objective; fill it in"),
        ("4,20,separable,,1\n5,20,separable,,1\n", ("accuracy=acc",), "(0.1, 0.2, 0.3) (and 1 more row); nothing"),
        (GOOD, ("accuracy=acc", "latency_ms==0"), "row 1: latency_ms 0 is no time, which is above 0 ms"),
        (
            GOOD,
            ("accuracy=acc", "seed==0.5"),
            "row 1: seed is 0.5, and a whole number from 0 to 2,147,",
        ),
        (GOOD, ("accuracy=acc", "epochs==0"), "row 1: epochs is 0, and a whole number from 1"),
        (GOOD + GOOD, ("accuracy=acc", "seed==1"), "row 1 and row 2 are one network ("),
        (
            GOOD,
            (),
            "objective accuracy: not mapped; write --map accuracy=COLUMN or --map accuracy==VALUE (there are: ",
        ),
        (
            GOOD,
            ("accuracy=ac",),
            "--map accuracy=ac: rows.csv has no column 'ac'; did you mean acc? (there are: ",
        ),
        (GOOD, ("accurcy=acc",), "--map accurcy=acc: nothing is called 'accurcy'; did you mean accuracy? (there are: "),
        (GOOD, ("accuracy=acc", "width=width%"), "--map width=width%: width is not given in percent; leave the % out"),
        (GOOD, ("accuracy",), "--map accuracy: write NAME=COLUMN, NAME=COLUMN% for a share in percent, or NAME==VALUE"),
        (GOOD, ("accuracy==",), "--map accuracy==: write NAME=COLUMN"),
        (GOOD, ("accuracy=acc", "accuracy=width"), "--map accuracy=width: accuracy is mapped twice, to acc too"),
        ("0.1,20\n", ("accuracy=acc",), "rows.csv: row 1 has 2 cells and the header 5; cells are separated by commas"),
        ('0.1,20,"separable,,0.7\n', ("accuracy=acc",), "rows.csv: is no CSV file (unexpected end of data)"),
    ],
)
def test_bad_rows_and_mappings(tmp_path: Path, rows: str, maps: tuple[str, ...], text: str) -> None:
    with pytest.raises(MnetError) as caught:
        plan_of(tmp_path, HEAD + rows, *maps)
    assert text in str(caught.value).replace(str(tmp_path) + "/", "")
    assert caught.value.exit_code == 2


def test_unmapped_parameters_are_named_with_the_columns(tmp_path: Path) -> None:
    text = r"parameter block: not mapped; write --map block=COLUMN or --map block==VALUE \(there are: width, .*, acc\)"
    with pytest.raises(MnetError, match=text):
        plan_of(tmp_path, "width,resolution,acc\n0.1,20,0.7\n", "accuracy=acc")
    with pytest.raises(MnetError, match=r"row 1: parameter expand: not mapped; write --map expand=COLUMN"):
        plan_of(tmp_path, "width,resolution,block,acc\n0.1,20,inverted_residual,0.7\n", "accuracy=acc")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "rows.csv: is empty; a CSV file begins with the names of its columns"),
        (b"a,b\n , \n\n", "rows.csv: has a header and no rows below it, so that there is nothing to import"),
        (b"a,b,a\n", "rows.csv: the column 'a' stands twice in its header"),
        (b"a,\xff\n", "rows.csv: is not UTF-8 text (byte 2); save it as CSV in UTF-8"),
        (None, "rows.csv: cannot be read (No such file or directory); name a CSV file"),
    ],
)
def test_files_that_are_no_csv(tmp_path: Path, content: bytes | None, text: str) -> None:
    if content is not None:
        (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(MnetError) as caught:
        read_csv(tmp_path / "rows.csv")
    assert text in str(caught.value)


def test_csv_of_other_programs(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbf"a b", c\r\n"x,\ny",2\r\n\r\n ,\r\n,,,\r\n 3 ,4\r\n')
    table = read_csv(tmp_path / "x.csv")
    assert table.columns == ("a b", "c")
    assert [dict(row.cells) for row in table.rows] == [{"a b": "x,\ny", "c": "2"}, {"a b": "3", "c": "4"}]
    assert [row.label for row in table.rows] == ["x.csv row 1", "x.csv row 2"]


def test_a_column_called_percent_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("width,resolution,block,acc%\n0.1,20,separable,70\n")
    table, space = read_csv(tmp_path / "x.csv"), space_of()
    parts = {"expand": "=2", "accuracy": "acc%"}
    assert resolve(space, table, parts)["accuracy"] == Column("acc%")
    assert resolve(space, table, parts | {"accuracy": "acc%%"})["accuracy"] == Column("acc%", percent=True)
    assert resolve(space, table, parts)["expand"] == Constant("2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ours", "--from", "rows.csv"), "study 'ours' is new: give the space that its networks are of, with --space"),
        (("ours", "--space", "space.yaml"), "say where trials come from: --from FILE.csv, or --from-storage URL with"),
        (("ours", "--from", "x.csv", "--from-study", "y"), "say where trials come from"),
        (("ours", "--space", "space.yaml", "--from", "head.csv"), "head.csv: has a header and no rows below it"),
        (("../x", "--from", "rows.csv"), "STUDY '../x': a name is letters"),
        (
            ("ours", "--from-storage", "sqlite:///study.db", "--from-study", "ours"),
            "is the study that takes the",
        ),
        (("ours", "--space", "away.yaml", "--from", "rows.csv"), "those of the data, which are not here (npz:"),
    ],
)
def test_bad_commands_make_no_database(folder: Path, arguments: tuple[str, ...], text: str) -> None:
    (folder / "head.csv").write_text("width,top1\n")
    (folder / "away.yaml").write_text(SPACE.replace("{name: digits}", "{name: npz, path: nowhere}"))
    done = call(folder, "import", *arguments, "--map", "accuracy=top1%")
    assert done.returncode == 2
    assert text in done.stderr
    assert not (folder / "study.db").exists()


def test_published_data_need_not_be_here(folder: Path) -> None:
    (folder / "space.yaml").write_text(SPACE.replace("{name: digits}", "{name: cifar10, path: nowhere}"))
    assert call(folder, *NEW, "--dry-run").returncode == 0
