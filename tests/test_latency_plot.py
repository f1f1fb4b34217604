"""Latency, predicted and measured, and the drift of the machine: from a table and measurements in a real database."""

from __future__ import annotations

import pandas as pd
import pytest

from mnet_search.dashboards.measurements import latency_tables, measurements
from mnet_search.dashboards.plots import PLOTS
from mnet_search.dashboards.snapshot import take
from mnet_search.models.families import create
from mnet_search.models.latency_table import CONSTANTS, FACTORS, LatencyTable, layers_of
from mnet_search.studies import database as db
from mnet_search.studies.latency_tables import save

from browser import Written
from plot_frames import START, frame_of, grid_frame, snapshot_of


def table_of(frame, space="grid"):
    """A table that takes a hundredth of a millisecond for each layer."""
    rows = {}
    for family, options in zip(frame["family"], frame["options"], strict=True):
        for layer in layers_of(create(family, **options)):
            rows[layer.key] = [0.01, layer.kind, [1, 1]]
    ones = dict.fromkeys(FACTORS, 1.0) | dict.fromkeys(CONSTANTS, 0.0)
    return LatencyTable(space, {"device": "here"}, rows, ones, 1, 1.0, 0.0)


def test_predicted_and_measured():
    frame = grid_frame(repeats=1)
    table = table_of(frame)
    info = PLOTS["latency"].info(snapshot_of(frame, tables=[table]))
    assert info.predicted and len(info.y) == 18 and list(info.y) == sorted(info.y)
    number = info.numbers[0]
    row = frame.loc[number]
    assert info.x[0] == pytest.approx(table.predict(create(row["family"], **row["options"])).latency_ms)
    assert info.bars[0] == (row["latency_q1_ms"], row["latency_q3_ms"])
    assert info.hover[0][-1].startswith("predicted: 0.")
    assert info.note.startswith("predictions are off by ") and "(median of 18), rank correlation " in info.note
    figure = PLOTS["latency"].figure(info)
    assert [trace.name for trace in figure.data] == ["as predicted", "trials (18)"]
    assert figure.layout.xaxis.title.text == "Predicted latency (ms)"


def test_mult_adds_stand_in_for_a_table():
    frame = grid_frame(repeats=1)
    info = PLOTS["latency"].info(snapshot_of(frame), most=5)
    assert not info.predicted and len(info.x) == 5 and info.n_trials == 18
    assert info.x == tuple(float(frame.loc[number, "mult_adds"]) for number in info.numbers)
    assert info.note == (
        "no latency table is stored for this space, so mult-adds stand in; "
        "mnet-search latency table --build SPACE makes one; rank correlation 1.000 (n 5)"
    )
    assert PLOTS["latency"].figure(info).layout.xaxis.title.text == "Multiply-adds per image"
    bare = frame.drop(columns="options")
    assert "the table does not know these layers" in (
        PLOTS["latency"].info(snapshot_of(bare, tables=[table_of(frame)])).note
    )
    unmeasured = snapshot_of(frame_of().assign(latency_ms=float("nan")))
    assert PLOTS["latency"].info(unmeasured).empty.startswith("this study measures no latency; ")


def test_drift_over_time():
    rows = [(0, START, 0.5, 0.02, True), (1, START, 0.75, 0.30, False), (2, START, 0.9, float("nan"), True)]
    table = pd.DataFrame(rows, columns=["number", "measured", "median_ms", "drift", "good"])
    info = PLOTS["drift"].info(snapshot_of(measurements=table))
    assert (info.numbers, info.drift, info.good) == ((0, 1), (0.02, 0.30), (True, False))
    assert info.hover[1] == "trial 1: 0.750 ms, drift 30.0 %"
    assert info.note.startswith("median drift 16.0 %; 1 of 2 measurements beyond the protocol's bound")
    figure = PLOTS["drift"].figure(info)
    assert [(trace.name, trace.marker.symbol) for trace in figure.data] == [
        ("good (1)", "circle"),
        ("not good (1)", "x"),
    ]


def test_a_snapshot_has_the_measurements_and_tables_of_its_study(tmp_path):
    written = Written(tmp_path)
    number = written.finish(0.9, 0.5)
    with written.store.write() as connection:
        trial_id = connection.execute(db.trials.select()).mappings().first()["trial_id"]
        for drift in (0.05, 0.2):
            protocol = {"device": "cpu", "drift": drift, "good": drift < 0.1}
            row = {"trial_id": trial_id, "name": "latency_ms", "median": 0.5, "q1": 0.4, "q3": 0.6, "n": 50}
            connection.execute(
                db.measurements.insert().values(**row, protocol=protocol, measured=START.to_pydatetime())
            )
    frame = grid_frame(repeats=1).head(1)
    save(written.store, table_of(frame, written.space.name))
    save(written.store, table_of(frame, "another space"))
    found = take(written.store, written.name)
    assert found.measurements.to_dict("records") == [
        {"number": number, "measured": START, "median_ms": 0.5, "drift": 0.05, "good": True},
        {"number": number, "measured": START, "median_ms": 0.5, "drift": 0.2, "good": False},
    ]
    assert len(measurements(written.store, written.name, most=1)) == 1, "evenly, where there are many"
    assert [table.space for table in latency_tables(written.store, written.name)] == [written.space.name]
    assert [table.space for table in found.latency_tables] == [written.space.name]
    written.store.close()
