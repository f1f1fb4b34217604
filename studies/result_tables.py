"""Rows of results as text, in several styles.

To add a style, write a function from a ResultTable to its text, and its row in STYLES at the foot.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mnet_search.studies.frame_files import safe_text
from mnet_search.studies.result_rows import ResultRow, ResultTable

LEAST_PLAIN, MOST_PLAIN = 1e-5, 1e9  # between them figures stand without an exponent


@dataclass(frozen=True)
class _Column:
    """`spreads` stand behind the figures, which are aligned all the same: an error, quartiles."""

    title: str
    cells: tuple[str, ...]
    right: bool = True
    spreads: tuple[str, ...] = ()

    def joined(self) -> list[str]:
        """The cells with their spreads, in a width of their own."""
        width = max(map(len, self.spreads), default=0)
        if not width:
            return list(self.cells)
        return [f"{cell} {spread:{width}}" for cell, spread in zip(self.cells, self.spreads, strict=True)]


def _columns(rows: Sequence[ResultRow]) -> list[_Column]:
    """The table as people read it; columns that no row fills are left out."""
    digits = _accuracy_digits(rows)
    found = [_Column("network", tuple(row.network + " †" * row.imported for row in rows), right=False)]
    if any(row.accuracy is not None for row in rows):
        cells = ["–" if row.accuracy is None else _percent(row.accuracy, digits) for row in rows]
        found.append(_Column("accuracy, %", tuple(cells), spreads=tuple(_error(row, digits) for row in rows)))
    found.append(_Column("n", tuple(str(row.n) for row in rows)))
    found.append(_Column("M mult-adds", tuple(three_digits(row.mult_adds / 1e6) for row in rows)))
    found.append(_Column("M params", tuple(three_digits(row.params / 1e6) for row in rows)))
    if any(row.latency_ms is not None for row in rows):
        cells = ["–" if row.latency_ms is None else three_digits(row.latency_ms) for row in rows]
        found.append(_Column("latency, ms", tuple(cells), spreads=tuple(_quartiles(row) for row in rows)))
    for index, (name, _) in enumerate(rows[0].objectives if rows else ()):
        values = [row.objectives[index][1] for row in rows]
        found.append(_Column(name, tuple("–" if v is None else f"{v:.4g}" for v in values)))
    for index, (name, _) in enumerate(rows[0].parameters if rows else ()):
        chosen = [row.parameters[index][1] for row in rows]
        if all(value is None for value in chosen):
            continue
        right = all(not isinstance(v, str) for v in chosen)
        found.append(_Column(name, tuple(_parameter(v) for v in chosen), right=right))
    return found


def three_digits(value: float) -> str:
    """Three significant digits, and whole numbers from 100 on: 0.0269, 4.23, 41.0, 569, 15,470; those of another order
    of magnitude with an exponent.
    """
    if value == 0:
        return "0"
    if not LEAST_PLAIN <= abs(value) < MOST_PLAIN:
        return f"{value:.3g}"
    places = 2 - math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{value:,.{max(places, 0)}f}"


def _percent(share: float, digits: int) -> str:
    """A share in percent. A function of one's own may give what is no share: with an exponent where it is large."""
    return f"{100 * share:.{digits}f}" if abs(share) < MOST_PLAIN else f"{Decimal(share) * 100:.3g}"


def _accuracy_digits(rows: Sequence[ResultRow]) -> int:
    """One digit after the point, as the paper has; two where the smallest error would be cut to nothing."""
    errors = [100 * row.accuracy_error for row in rows if row.accuracy_error]
    return 2 if errors and min(errors) < 0.095 else 1


def _error(row: ResultRow, digits: int) -> str:
    if row.accuracy_error is None:
        return ""
    error = f"± {_percent(row.accuracy_error, digits)}"
    return f"({error})" if row.error_kind == "sampling" else error


def _quartiles(row: ResultRow) -> str:
    if row.latency_q1_ms is None or row.latency_q3_ms is None:
        return ""
    return f"[{three_digits(row.latency_q1_ms)}, {three_digits(row.latency_q3_ms)}]"


def _parameter(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


# ---------------------------------------------------------------- styles


def paper(table: ResultTable) -> str:
    """Plain text: aligned columns between rules, as in a printed table."""
    columns = [_aligned(column, [column.title, *column.joined()]) for column in _columns(table.rows)]
    head, *rows = ("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))
    rule = "-" * len("  ".join(column[0] for column in columns))
    return "\n".join([rule, head, rule, *rows, rule, *table.notes]) + "\n"


def _aligned(column: _Column, cells: Sequence[str], least: int = 0) -> list[str]:
    width = max(least, *map(len, cells))
    return [cell.rjust(width) if column.right else cell.ljust(width) for cell in cells]


def markdown(table: ResultTable) -> str:
    """A table of GitHub's Markdown, numbers to the right, and the notes below it."""
    columns = []
    for column in _columns(table.rows):
        cells = _aligned(column, [markdown_text(column.title), *map(markdown_text, column.joined())], least=3)
        mark = "-" * (len(cells[0]) - 1) + (":" if column.right else "-")
        columns.append([cells[0], mark, *cells[1:]])
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    notes = "\n".join(markdown_text(note) for note in table.notes)
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "") + "\n"


def markdown_text(text: str) -> str:
    """Text as one cell shows it, whatever is in it."""
    escaped = "".join(f"\\{letter}" if letter in "\\|*_`<>[]" else letter for letter in text)
    return "".join(" " if letter.isspace() else letter for letter in escaped)


def latex(table: ResultTable) -> str:
    """A tabular with the rules of the booktabs package (\\usepackage{booktabs}), numbers to the right, and what spreads
    around them in a column behind.
    """
    shape, head = "", list[str]()
    body: list[list[str]] = [[] for _ in table.rows]
    for column in _columns(table.rows):
        title, wide = latex_text(column.title), any(column.spreads)
        shape += ("r" if column.right else "l") + "@{ }l" * wide
        head.append(rf"\multicolumn{{2}}{{c}}{{{title}}}" if wide else title)
        for i, cells in enumerate(body):
            cells += map(latex_text, (column.cells[i], column.spreads[i]) if wide else (column.cells[i],))
    rows = [_row_start(" & ".join(cells)) + r" \\" for cells in body]
    n_columns = shape.count("r") + shape.count("l")
    notes = [rf"\multicolumn{{{n_columns}}}{{l}}{{\footnotesize {latex_text(note)}}} \\" for note in table.notes]
    lines = [rf"\begin{{tabular}}{{{shape}}}", r"\toprule", rf"{' & '.join(head)} \\", r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", *notes, r"\end{tabular}"]) + "\n"


def _row_start(text: str) -> str:
    """After the row before it, a bracket or a star would belong to that row's end."""
    return "{}" + text if text.startswith(("[", "*")) else text


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "–": "--",
}


def latex_text(text: str) -> str:
    """Text as LaTeX prints it: every letter that means something to it is escaped."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return "".join(_LATEX.get(letter, letter) for letter in printable)


def as_csv(table: ResultTable) -> str:
    """Every figure in full precision, with units in the header and without the notes; texts that a spreadsheet would
    take for formulas have a single quote before them.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [_record(row) for row in table.rows]
    writer.writerow([safe_text(name) for name in (rows[0] if rows else _record(_NOTHING))])
    for row in rows:
        writer.writerow(["" if value is None else safe_text(value) for value in row.values()])
    return out.getvalue()


def _record(row: ResultRow) -> dict[str, Any]:
    return {
        "network": row.network,
        "arch_id": row.arch_id,
        "trials": " ".join(map(str, row.trials)),
        "n_runs": row.n,
        "accuracy_share": row.accuracy,
        "accuracy_error_share": row.accuracy_error,
        "error_kind": row.error_kind,
        "mult_adds": row.mult_adds,
        "params": row.params,
        "latency_ms": row.latency_ms,
        "latency_q1_ms": row.latency_q1_ms,
        "latency_q3_ms": row.latency_q3_ms,
        **dict(row.objectives),
        **{f"param.{name}": value for name, value in row.parameters},
        "imported": row.imported,
    }


_NOTHING = ResultRow("", "", (), None, None, "", 0, 0)

STYLES: dict[str, Callable[[ResultTable], str]] = {
    "paper": paper,
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
}
