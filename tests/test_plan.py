"""`run --from-fit`: the networks of a plan are trained to their end, and nothing else is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.plan import read_plan
from mnet_search.search.run import open_space
from mnet_search.spaces.yamlfile import SpaceError

from processes import TINY, load, search, write_space

TEXT = TINY.replace("sampler: grid, n_trials: 4", "sampler: random, scheduler: moasha, first_rung: 1, eta: 50")
PLAN = """\
study: tiny
form: paper
networks:
  - {width: 0.2, resolution: 12, depth: shallow}
  - {width: 0.1, resolution: 9}
"""


def plan_file(folder: Path, text: str = PLAN) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two finished trials, before its plan."""
    folder = tmp_path_factory.mktemp("plan")
    search(folder, TEXT, n_trials=2)
    return folder


def test_it_trains_the_networks_of_the_plan_and_the_same_again_adds_nothing(begun: Path) -> None:
    path = plan_file(begun)
    before = load(begun)
    known = {(r["param.width"], r["param.resolution"]) for _, r in before[before["state"] == "finished"].iterrows()}
    wanted = {(0.2, 12), (0.1, 9)}
    result = search(begun, TEXT, from_fit=path)
    frame = load(begun)
    new = frame[~frame["number"].isin(before["number"])]
    assert {(r["param.width"], r["param.resolution"]) for _, r in new.iterrows()} == wanted - known
    assert set(new["state"]) == {"finished"}  # whatever the scheduler would have said
    assert result.n_finished == result.n_asked == 2 + len(wanted - known)
    again = search(begun, TEXT, from_fit=path)
    assert (again.n_new, again.n_finished) == (0, result.n_finished)
    assert len(load(begun)) == len(frame)


def test_repeats_and_what_was_left_running_are_of_the_plan_alone(tmp_path: Path) -> None:
    text = TEXT.replace("scheduler: moasha, first_rung: 1", "scheduler: none")
    search(tmp_path, text, n_trials=3)
    with sqlite3.connect(tmp_path / "study.db") as database:  # as a kill leaves one behind
        state = "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE state = 'COMPLETE' AND number = "
        database.execute(f"{state}(SELECT MAX(number) FROM trials WHERE state = 'COMPLETE')")
    before = load(tmp_path)
    known = {(r["param.width"], r["param.resolution"]) for _, r in before.iterrows()}
    new = [(w, r) for w in (0.1, 0.12, 0.15, 0.2) for r in (9, 12) if (w, r) not in known][:2]
    networks = "".join(f"  - {{width: {width}, resolution: {resolution}}}\n" for width, resolution in new)
    path = plan_file(tmp_path, f"study: tiny\nnetworks:\n{networks}")
    for _ in range(2):
        result = search(tmp_path, text, from_fit=path, overrides=("search.repeats=2",))
        frame = load(tmp_path)
        added = frame[~frame["number"].isin(before["number"])]
        runs = sorted((r["param.width"], r["param.resolution"], r["seed"]) for _, r in added.iterrows())
        assert runs == sorted((width, resolution, seed) for width, resolution in new for seed in (0, 1))
        assert result.n_finished == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PLAN.replace("study: tiny", "study: other"),
            "plan.yaml: it is for study 'other', and this run is 'tiny'; give --study other",
        ),
        (
            PLAN.replace("width: 0.1", "width: 0.3"),
            "plan.yaml:5: networks.1: width is never 0.3; it may be 0.1, 0.12, 0.15, 0.2",
        ),
        ("study: tiny\nnetworks: []\n", "plan.yaml:2: networks: list should have at least 1 item"),
        ("study: tiny\nnetwork: []\n", "plan.yaml:2: network: unknown key; did you mean networks?"),
    ],
)
def test_a_plan_that_cannot_be_is_said(begun: Path, tmp_path: Path, text: str, message: str) -> None:
    space = open_space(write_space(tmp_path, TEXT), [])
    path = plan_file(tmp_path, text)
    with pytest.raises((MnetError, SpaceError)) as error:
        read_plan(path, space, "tiny", f"sqlite:///{begun / 'study.db'}")
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(message)
