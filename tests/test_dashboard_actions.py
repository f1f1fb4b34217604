"""What the page can do: only for its own page, only inside the runs folder, and said in words where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mnet_search.dashboards.actions import act, inside, log_tail, runs_folder
from mnet_search.models.arch import MnetError
from mnet_search.studies import database as db
from mnet_search.studies.requests import Note, notes
from mnet_search.studies.store import Store

from browser import Written, ask, served
from processes import search

SCRIPT = "<script>alert('note')</script>"


@pytest.fixture
def study(tmp_path):
    written = Written(tmp_path, "s")
    (tmp_path / "runs").mkdir()
    written.finish(0.9, 1.0)
    yield written
    written.store.close()


def session_of(port):
    layout = json.loads(ask(port, path="/_dash-layout")[1])
    return layout["props"]["data-session"]


def post(port, name, content, **headers):
    answer, text = ask(port, "POST", f"/action/{name}", json.dumps(content), Content_Type="application/json", **headers)
    return answer.status, text


def place(study, number, **values):
    """Other values of a trial's row, as a database of somebody else might have them."""
    with study.store.write() as connection:
        connection.execute(db.trials.update().where(db.trials.c.number == number).values(**values))


# --- Who may ask ---


def test_actions_need_the_secret_of_the_page(study):
    content = {"study": "s", "trial": "0", "note": SCRIPT, "tags": "a, b"}
    with served(study.url) as port, served(study.url) as other:
        session = session_of(port)
        for headers in ({}, {"X_Mnet_Session": ""}, {"X_Mnet_Session": "guess"}, {"X_Mnet_Session": session_of(other)}):
            for name in ("note", "export", "repeat", "stop"):
                status, text = post(port, name, content, **headers)
                assert (status, "refused" in text) == (403, True)
        assert post(port, "note", content, X_Mnet_Session=session, Origin="http://evil.example")[0] == 403
        assert notes(study.store, "s") == {}
        status, text = post(port, "note", content, X_Mnet_Session=session)
        assert (status, json.loads(text)) == (200, {"said": "the note of trial 0 is kept"})
    assert notes(study.store, "s") == {0: Note(SCRIPT, ("a", "b"))}


def test_what_makes_no_sense_is_said(study):
    with served(study.url) as port:
        session = session_of(port)
        for name, content, said in (
            ("erase", {}, "no action 'erase': there are export, stop, repeat, note"),
            ("note", {"study": "s", "trial": "../1"}, "trial '../1' is no number of a trial"),
            ("note", {"study": "s", "trial": True}, "trial True is no number of a trial"),
            ("note", {"study": ["s"], "trial": 0}, "study must be a text, not list"),
            ("note", [], "trial None is no number of a trial"),
            ("note", {"study": "t", "trial": 0}, "no study 't' in "),
            ("repeat", {"study": "s", "trial": 99}, "no trial 99 in study 's'"),
            ("stop", {"study": "s"}, "no search is running on study 's': there is nothing to stop"),
            ("export", {"study": "s", "trial": 99}, "no trial 99 in this study (it has: 0 to 0)"),
        ):
            status, text = post(port, name, content, X_Mnet_Session=session)
            assert status == 400
            assert json.loads(text)["said"].startswith(said)


# --- Paths ---


def test_no_path_leaves_the_runs_folder(study, tmp_path):
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    outside.mkdir()
    (outside / "trial.log").write_text("a secret\n")
    (runs / "link").symlink_to(outside)
    (runs / "own").mkdir()
    (runs / "own" / "trial.log").write_text("begins\n\nends\n")
    assert runs_folder(study.store, "s") == runs.resolve()
    place(study, 0, folder=str(runs / "own"))
    assert log_tail(study.store, "s", 0) == ["begins", "ends"]
    (runs / "own" / "trial.log").unlink()
    (runs / "own" / "trial.log").symlink_to(outside / "trial.log")
    for folder in (runs / "own", runs / "link", outside, runs / "own" / ".." / ".." / "outside"):
        place(study, 0, folder=str(folder))
        with pytest.raises(MnetError, match=r"trial.log leads out of the study's runs folder: it is left alone"):
            log_tail(study.store, "s", 0)
    with pytest.raises(MnetError, match="leads out"):
        inside(runs / ".." / "studies.db", runs.resolve())
    for folder, why in (("", "no folder of this trial is recorded"), ("s3://bucket/run", "the log lies at a URL")):
        place(study, 0, folder=folder)
        with pytest.raises(MnetError, match=why):
            log_tail(study.store, "s", 0)


def test_exports_stay_inside_too(study, tmp_path):
    with study.store.write() as connection:
        connection.execute(db.studies.update().values(provenance={}))
    place(study, 0, checkpoint=str(tmp_path / "elsewhere.pt"))
    content = {"study": "s", "trial": "0"}
    with pytest.raises(MnetError, match=r"elsewhere.pt leads out of the study's runs folder"):
        act(study.url, "export", content)
    place(study, 0, checkpoint="")
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "exports").symlink_to(tmp_path / "outside")
    with pytest.raises(MnetError, match="exports leads out of the study's runs folder"):
        act(study.url, "export", content)
    assert list((tmp_path / "outside").iterdir()) == []
    (tmp_path / "runs" / "exports").unlink()
    said = act(study.url, "export", content)
    assert said.endswith("runs/exports: s-trial0.yaml, s-trial0.md"), "without weights, where none were kept"
    (tmp_path / "runs" / "exports" / "s-trial0.md").unlink()
    (tmp_path / "runs" / "exports").rename(tmp_path / "runs" / "kept")
    (tmp_path / "runs").rename(tmp_path / "gone")
    with pytest.raises(MnetError, match=r"no runs folder '.*runs' of study 's' on this machine"):
        act(study.url, "export", content)


# --- What they do ---


def test_export_and_stop_of_a_real_study(tmp_path):
    search(tmp_path, n_trials=1)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    said = act(url, "export", {"study": "tiny", "trial": "0"})
    folder = Path(said.partition(" is exported to ")[2].partition(": ")[0])
    assert folder == (tmp_path / "runs" / "exports").resolve()
    assert sorted(path.name for path in folder.iterdir()) == [
        "tiny-trial0.md", "tiny-trial0.safetensors", "tiny-trial0.yaml",
    ]  # fmt: skip
    assert act(url, "export", {"study": "tiny", "trial": 0}) == said, "again, over the same files"
    with Store(url) as store:
        assert "trial 0 begins" in "\n".join(log_tail(store, "tiny", 0))


def test_stop_asks_the_search(study):
    with study.writer.lock():
        said = act(study.url, "stop", {"study": "s"})
        assert said.startswith("the search was asked to stop")
        assert study.writer.stop_requested() == "finish"


def test_repeat_is_asked_for(study):
    said = act(study.url, "repeat", {"study": "s", "trial": "0"})
    assert said == (
        "trial 1 waits: the same network with seed 1; a search that is begun from now on trains it "
        "(mnet-search resume s)"
    )
