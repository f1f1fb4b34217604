"""What a person asks of a study from the page: notes, tags and repeats, in a real database, trained by a real run."""

from __future__ import annotations

import optuna
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.studies.requests import MOST_NOTE, Note, Repeat, ask_repeat, detail, notes, parse_tags, write_note
from mnet_search.studies.store import Store

from browser import Written
from processes import call, load, search


@pytest.fixture
def study(tmp_path):
    written = Written(tmp_path, "s")
    written.finish(0.9, 1.0)
    written.finish(0.8, 0.5)
    yield written
    written.store.close()


def test_notes_and_tags_are_kept_replaced_and_taken_away(study):
    assert notes(study.store, "s") == {}
    write_note(study.store, "s", 1, Note("<b>odd\0</b>\r\nlatency ", ("check", "jäger")))
    assert notes(study.store, "s") == {1: Note("<b>odd\ufffd</b>\nlatency", ("check", "jäger"))}
    attributes = optuna.load_study(study_name="s", storage=study.url).trials[1].user_attrs
    assert (attributes["mnet_tags"], attributes["mnet_note"]) == (["check", "jäger"], "<b>odd\ufffd</b>\nlatency")
    write_note(study.store, "s", 1, Note("", ("kept",)))
    assert notes(study.store, "s", 1) == {1: Note("", ("kept",))}
    write_note(study.store, "s", 1, Note())
    assert notes(study.store, "s") == {}


def test_tags_are_words_between_commas():
    assert parse_tags(" fast,, best  one ,fast") == ("fast", "best one")


def test_what_cannot_be_noted(study):
    with pytest.raises(MnetError, match="no trial 7 in study 's'"):
        write_note(study.store, "s", 7, Note("x"))
    with pytest.raises(MnetError, match=r"a note of 4,001 characters: at most 4,000 are kept; shorten it"):
        write_note(study.store, "s", 0, Note("x" * (MOST_NOTE + 1)))
    with pytest.raises(MnetError, match="at most 20 tags of 40 characters each"):
        write_note(study.store, "s", 0, Note("", ("x" * 41,)))


def test_a_repeat_waits_in_both_tables(study):
    assert ask_repeat(study.store, "s", 0) == Repeat(2, 1)
    assert ask_repeat(study.store, "s", 0) == Repeat(3, 2), "the next seed, for the one before is asked for"
    assert study.store.summary("s").n_total_asked == 32
    trials = optuna.load_study(study_name="s", storage=study.url).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "WAITING", "WAITING"]
    assert trials[3].params == trials[0].params
    assert detail(study.store, "s", 3).chosen == detail(study.store, "s", 0).chosen
    with pytest.raises(MnetError, match="no trial 9 in study 's'"):
        ask_repeat(study.store, "s", 9)
    assert study.store.summary("s").n_total_asked == 32, "nothing of what failed is left"


def test_the_same_in_postgresql(postgres, tmp_path):
    written = Written(tmp_path, "s", url=postgres.database())
    written.finish(0.9, 1.0)
    write_note(written.store, "s", 0, Note("slow", ("check",)))
    assert notes(written.store, "s", 0) == {0: Note("slow", ("check",))}
    assert ask_repeat(written.store, "s", 0) == Repeat(1, 1)
    assert detail(written.store, "s", 1).state == "waiting"
    assert detail(written.store, "s", 1).chosen == detail(written.store, "s", 0).chosen
    records = written.writer.records()
    assert [(record.state, record.seed, record.owner) for record in records] == [
        ("finished", 0, None),
        ("waiting", 1, None),
    ]
    written.store.close()


def test_a_repeat_is_trained_by_the_next_run(tmp_path):
    search(tmp_path, n_trials=1)
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        asked = ask_repeat(store, "tiny", 0)
    assert asked == Repeat(1, 1)
    resumed = call(tmp_path, "resume", "tiny", "--executor", "local", "--storage", "sqlite:///study.db", "-q")
    assert resumed.returncode == 0, resumed.stderr
    frame = load(tmp_path)
    assert list(frame["state"]) == ["finished", "finished"]
    assert list(frame["seed"]) == [0, 1]
    assert frame["arch_id"].nunique() == 1
    assert list(frame["attempts"]) == [1, 1]
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        folders = [detail(store, "tiny", number).folder for number in (0, 1)]
    assert folders[1] == folders[0].replace("-seed0", "-seed1")
    assert frame["checkpoint"][1].startswith(folders[1])
