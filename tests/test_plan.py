"""`run --from-fit`: the networks of a plan are trained to their end, and nothing else is."""

from __future__ import annotations

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
