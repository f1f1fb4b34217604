"""A study's frame as CSV text or Parquet bytes, for spreadsheets and other programs."""

from __future__ import annotations

import importlib.util
import io
import json
from typing import Any

import pandas as pd

from mnet_search.models.arch import MnetError

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_csv(frame: pd.DataFrame) -> str:
    """The frame as CSV with a header, numbers in full precision, missing ones empty, `options` as JSON text.

    A text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a carriage return) gets a single
    quote before it; numbers stay as they are.
    """
    made = _flat(frame)
    for name in made.columns:
        column = made[name]
        if isinstance(column.dtype, pd.StringDtype):
            mask = column.str.startswith(FORMULA_STARTS, na=False)
            if mask.any():
                made[name] = column.where(~mask, "'" + column)
        elif column.dtype == object:
            made[name] = column.map(safe_text, na_action="ignore")
    return str(made.rename(columns=safe_text).to_csv(index=False, lineterminator="\n"))


def to_parquet(frame: pd.DataFrame) -> bytes:
    """The frame as a Parquet file, with the same columns; a parameter that is sometimes a number and sometimes a word
    is text throughout, since a column of Parquet has one type. Raises MnetError where pyarrow is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:  # pandas would name three packages to choose from
        raise MnetError(
            "Parquet needs pyarrow, which is not installed; install it (pip install pyarrow), or write a .csv file"
        )
    made = _flat(frame)
    for name in made.columns:
        if made[name].dtype == object and pd.api.types.infer_dtype(made[name], skipna=True).startswith("mixed"):
            made[name] = made[name].map(str, na_action="ignore")
    buffer = io.BytesIO()
    made.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def safe_text(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy with `options` as JSON text; equal rows share their options, which are written once."""
    if "options" not in frame.columns:
        return frame.copy()
    texts: dict[int, str] = {}
    for options in frame["options"]:
        if id(options) not in texts:
            texts[id(options)] = json.dumps(options)
    return frame.assign(options=[texts[id(options)] for options in frame["options"]])
