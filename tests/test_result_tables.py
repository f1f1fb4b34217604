"""Tables in the manner of the papers: rows by equality, each style by its whole text, and escapes by properties."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_studies import begin, finish, open_study

from mnet_search.models.arch import MnetError
from mnet_search.studies.result_rows import ResultRow, ResultTable, network_name, notes_of, rows_of
from mnet_search.studies.result_tables import STYLES, latex_text, markdown_text, three_digits
from mnet_search.studies.store import Store

from processes import call

OBJECTIVES = {"accuracy": "maximize", "latency_ms": "minimize", "params": "minimize"}
NAN = math.nan


def frame_of(*trials: dict[str, Any]) -> pd.DataFrame:
    """Trials as `load` gives them, of what is said of each."""
    usual = {
        "state": "finished",
        "family": "mobilenet_v1",
        "accuracy": 0.9,
        "validation_loss": 0.3,
        "latency_ms": 1.0,
        "latency_q1_ms": 0.9,
        "latency_q3_ms": 1.25,
        "params": 823_722,
        "mult_adds": 3_045_632,
        "imported": "",
        "param.width": 0.5,
        "param.block": "separable",
    }
    rows = [usual | {"number": i, "arch_id": str(i), "options": options(), **t} for i, t in enumerate(trials)]
    return pd.DataFrame(rows)


def options(width: float = 0.5, resolution: int = 32, depth: Any = "full") -> dict[str, Any]:
    return {"width": width, "resolution": resolution, "depth": depth}


TWO = frame_of(
    {"arch_id": "a", "accuracy": 0.71, "param.block": "conv"},
    {"arch_id": "b", "accuracy": 0.6, "options": options(1.0, 20, "shallow"), "param.width": 1.0, "params": 470_072},
    {"arch_id": "a", "accuracy": 0.73, "latency_ms": 3.0, "param.block": "conv"},
    {"arch_id": "c", "state": "failed", "accuracy": NAN},
)
TWICE = ResultRow(
    network="0.5 MobileNet-32",
    arch_id="a",
    trials=(0, 2),
    accuracy=0.72,
    accuracy_error=pytest.approx(math.sqrt(0.0002)),
    error_kind="sd",
    mult_adds=3_045_632,
    params=823_722,
    latency_ms=2.0,
    latency_q1_ms=0.9,
    latency_q3_ms=1.25,
    parameters=(("block", "conv"),),
)
ONCE = ResultRow(
    network="shallow MobileNet-20",
    arch_id="b",
    trials=(1,),
    accuracy=0.6,
    accuracy_error=pytest.approx(math.sqrt(0.6 * 0.4 / 360)),
    error_kind="sampling",
    mult_adds=3_045_632,
    params=470_072,
    latency_ms=1.0,
    latency_q1_ms=0.9,
    latency_q3_ms=1.25,
    parameters=(("block", "separable"),),
)


def test_rows_are_networks_with_their_noise_and_what_their_names_do_not_say() -> None:
    assert rows_of(TWO, OBJECTIVES, "all", validation_images=360) == (TWICE, ONCE)
    assert rows_of(TWO, OBJECTIVES, validation_images=360) == (TWICE, ONCE), "both are on the front"
    assert [row.arch_id for row in rows_of(TWO, OBJECTIVES, "best")] == ["a"]
    assert [row.arch_id for row in rows_of(TWO, OBJECTIVES, "best", {"params": 5e5})] == ["b"]
    assert [row.arch_id for row in rows_of(TWO, OBJECTIVES, "front", {"latency_ms": 1.5})] == ["b"]
    single = rows_of(TWO, OBJECTIVES, "best", {"params": 5e5})[0]
    assert (single.accuracy_error, single.error_kind) == (None, ""), "how many images validated is not known"


def test_a_network_with_an_imported_run_is_marked_and_its_single_run_has_no_error() -> None:
    row = rows_of(frame_of({"imported": "x.csv row 1"}), OBJECTIVES, validation_images=360)[0]
    assert (row.imported, row.accuracy_error, row.n) == (True, None, 1)


def test_other_objectives_and_parameters_of_some_networks() -> None:
    frame = frame_of(
        {"family": "resnet18", "options": {}, "energy": 1.5, "param.width": NAN, "param.depth": None},
        {"arch_id": "b", "options": options(depth=0.5), "energy": NAN, "param.depth": 2.0},
    )
    found = rows_of(frame, {"energy": "minimize"}, "all")
    assert [row.network for row in found] == ["resnet18", "0.5 MobileNet-32"]
    assert [row.objectives for row in found] == [(("energy", 1.5),), (("energy", None),)]
    assert [row.parameters for row in found] == [(("depth", None),), (("depth", 2),)], "a name says no depth of 0.5"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (options(0.75, 160), "0.75 MobileNet-160"),
        (options(1, 224), "1.0 MobileNet-224"),
        (options(1.0, 32, "shallow"), "shallow MobileNet-32"),
        (options(0.25, 32, "shallow"), "shallow 0.25 MobileNet-32"),
    ],
)
def test_names_of_the_field(given: dict[str, Any], name: str) -> None:
    assert network_name("mobilenet_v1", given) == name
    assert network_name("mobilenet_v2", given) == "mobilenet_v2"


def test_what_cannot_be_tabled() -> None:
    with pytest.raises(MnetError, match="no trial of this study has finished yet; let the search run on"):
        rows_of(TWO[TWO["state"] == "failed"], OBJECTIVES)
    with pytest.raises(MnetError, match="--max colour: not a figure of a trial; use params"):
        rows_of(TWO, OBJECTIVES, limits={"colour": 1})
    with pytest.raises(MnetError, match=r"no finished trial has latency_ms within 0\.5; the least is 1"):
        rows_of(TWO, OBJECTIVES, limits={"latency_ms": 0.5})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0269, "0.0269"), (4.231976, "4.23"), (9.999, "10.0"), (41.03, "41.0"), (568.7, "569")],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
    assert three_digits(15470.26) == "15,470"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e308, "1e+308"),
        (-1.23456e12, "-1.23e+12"),
        (999_999_999, "999,999,999"),
        (1e-300, "1e-300"),
        (math.inf, "inf"),
    ],
)
def test_figures_of_any_size_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@given(st.floats(allow_nan=False), st.sampled_from(list(STYLES)))
def test_no_figure_makes_a_table_wide(value: float, style: str) -> None:
    row = ResultRow("x", "d", (1, 2), value, abs(value), "sd", 1, 1, value, value, value, (("own", value),))
    text = STYLES[style](ResultTable((row,)))
    assert max(map(len, text.splitlines())) < 250
    assert style != "csv" or str(value) in text


def test_an_accuracy_that_is_no_share() -> None:
    row = ResultRow("x", "d", (1,), 1e308, None, "", 1, 1, 1e308)
    cells = STYLES["paper"](ResultTable((row,))).splitlines()[3].split()
    assert cells == ["x", "1.00e+310", "1", "1e-06", "1e-06", "1e+308"]


def table() -> ResultTable:
    rows = rows_of(TWO, OBJECTIVES, "all", validation_images=360)
    marked = ResultRow(
        "my|net_1", "d", (7,), 0.5, None, "", 0, 12_000_000, imported=True, parameters=(("block", "a&b"),)
    )
    rows = (*rows, marked)
    return ResultTable(rows, notes_of(rows, "tiny", 4, "digits", 360))


NOTES = """\
Study tiny: 4 finished trials, data digits, 360 validation images; n is the number of runs of a network.
± is the sample standard deviation over n runs.
(±) is the binomial sampling error of the validation images, for a single run.
Latency is the median of the measured runs, with their quartiles in brackets.
† has imported runs, which were not trained here.
"""


def test_paper_style() -> None:
    assert STYLES["paper"](table()) == (
        """\
-------------------------------------------------------------------------------------------
network                accuracy, %  n  M mult-adds  M params         latency, ms  block
-------------------------------------------------------------------------------------------
0.5 MobileNet-32      72.0 ± 1.4    2         3.05     0.824  2.00 [0.900, 1.25]  conv
shallow MobileNet-20  60.0 (± 2.6)  1         3.05     0.470  1.00 [0.900, 1.25]  separable
my|net_1 †            50.0          1            0      12.0     –                a&b
-------------------------------------------------------------------------------------------
"""
        + NOTES
    )


def test_markdown_style() -> None:
    lines = STYLES["markdown"](table()).splitlines()
    assert lines[0].startswith("| network              | ")
    assert lines[1].split(" | ")[1:3] == ["-----------:", "--:"]
    assert re.sub(" +", " ", lines[2]) == (
        "| 0.5 MobileNet-32 | 72.0 ± 1.4 | 2 | 3.05 | 0.824 | 2.00 \\[0.900, 1.25\\] | conv |"
    )
    assert lines[4].startswith(r"| my\|net\_1 †")
    assert len({len(line) for line in lines[:5]}) == 1, "columns are aligned"
    assert lines[5:7] == ["", NOTES.splitlines()[0]]


def test_latex_style() -> None:
    lines = STYLES["latex"](table()).splitlines()
    assert lines[:6] == [
        r"\begin{tabular}{lr@{ }lrrrr@{ }ll}",
        r"\toprule",
        r"network & \multicolumn{2}{c}{accuracy, \%} & n & M mult-adds & M params & "
        r"\multicolumn{2}{c}{latency, ms} & block \\",
        r"\midrule",
        r"0.5 MobileNet-32 & 72.0 & $\pm$ 1.4 & 2 & 3.05 & 0.824 & 2.00 & [0.900, 1.25] & conv \\",
        r"shallow MobileNet-20 & 60.0 & ($\pm$ 2.6) & 1 & 3.05 & 0.470 & 1.00 & [0.900, 1.25] & separable \\",
    ]
    assert lines[6:8] == [r"my\textbar{}net\_1 $^\dagger$ & 50.0 &  & 1 & 0 & 12.0 & -- &  & a\&b \\", r"\bottomrule"]
    assert lines[-1] == r"\end{tabular}"
    assert all(line.startswith(r"\multicolumn{9}{l}{\footnotesize ") for line in lines[8:-1])


def test_csv_style_is_raw() -> None:
    rows = list(csv.DictReader(io.StringIO(STYLES["csv"](table()))))
    assert [float(row["accuracy_share"]) for row in rows] == [0.72, 0.6, 0.5]
    assert rows[0] | {"accuracy_error_share": ""} == {
        "network": "0.5 MobileNet-32",
        "arch_id": "a",
        "trials": "0 2",
        "n_runs": "2",
        "accuracy_share": "0.72",
        "accuracy_error_share": "",
        "error_kind": "sd",
        "mult_adds": "3045632",
        "params": "823722",
        "latency_ms": "2.0",
        "latency_q1_ms": "0.9",
        "latency_q3_ms": "1.25",
        "param.block": "conv",
        "imported": "False",
    }
    evil = ResultTable((ResultRow("=1+1", "d", (7,), -0.5, None, "", 0, 1),))
    assert STYLES["csv"](evil).splitlines()[1].startswith("'=1+1,d,7,1,-0.5,")


def test_small_errors_get_a_digit_more() -> None:
    row = ResultRow("x", "d", (1, 2), 0.98765, 0.0004, "sd", 1, 1)
    assert "98.77 ± 0.04" in STYLES["paper"](ResultTable((row,)))


@pytest.mark.parametrize("style", STYLES)
def test_no_rows_are_a_table_all_the_same(style: str) -> None:
    assert STYLES[style](ResultTable(())).endswith("\n")


@given(st.text())
def test_latex_escapes_everything_and_loses_no_letter(text: str) -> None:
    escaped = latex_text(text)
    bare = re.sub(r"\\[&%$#_{}]|\\text\w+\{\}|\$\\pm\$|\$\^\\dagger\$", "", escaped)
    assert not set(bare) & set("\\&%$#_{}~^<>|"), "what is left means nothing to LaTeX"
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    names |= {"textgreater": ">", "textbar": "|"}
    back = escaped.replace(r"$\pm$", "±").replace(r"$^\dagger$", "†")
    back = re.sub(r"\\(?:(text\w+)\{\}|([&%$#_{}]))", lambda m: names[m[1]] if m[1] else m[2], back)
    assert back == "".join(c if c.isprintable() else " " for c in text).replace("–", "--")


@given(st.text())
def test_markdown_cells_cannot_end_early(text: str) -> None:
    escaped = markdown_text(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*\|", escaped)
    assert escaped.splitlines() in ([], [escaped])


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    with Store(f"sqlite:///{folder / 'study.db'}", create=True) as store:
        study = open_study(store)
        for width, accuracy in ((0.1, 0.6), (0.2, 0.9)):
            finish(study, begin(study, width), accuracy)
    return folder


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def test_the_command_prints_and_writes(folder: Path) -> None:
    done = call(folder, "table", "tiny")
    assert done.returncode == 0, done.stderr
    assert "0.2 MobileNet-20" in done.stdout
    assert "Study tiny: 2 finished trials, data digits; n is" in done.stdout
    assert call(folder, "table", "tiny", "--style", "latex", "-o", "t.tex").stdout == ""
    assert (folder / "t.tex").read_text().startswith(r"\begin{tabular}")
    content = json.loads(call(folder, "table", "tiny", "--rows", "best", "--json").stdout)
    assert [(row["network"], row["accuracy"], row["n"]) for row in content["rows"]] == [("0.2 MobileNet-20", 0.9, 1)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--style", "papr"), "unknown style 'papr'; did you mean paper?"),
        (("--rows", "some"), "--rows some: write front, all or best"),
        (("-o", "old.md"), "old.md: exists already; replace it with --force, or name another with -o"),
        (("-o", "none/t.md"), "none/t.md: there is no folder 'none'; make it, or name another with -o"),
        (("-o", ".", "--force"), ".: is a folder; name a file with -o"),
        (("--max", "params"), "--max params: write NAME=NUMBER"),
    ],
)
def test_bad_input_of_the_command(folder: Path, arguments: tuple[str, ...], text: str) -> None:
    (folder / "old.md").write_text("old")
    done = call(folder, "table", "tiny", *arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stdout == ""
