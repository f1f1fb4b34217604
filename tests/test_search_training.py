"""What a search does for its trials' training: teachers, one copy of the images, the way that is recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.models.checkpoints import load_checkpoint
from mnet_search.search.recipes import RECIPES
from mnet_search.studies.store import Store

from processes import TINY, call, load, search, write_space
from real_digits import GREY, LABELS, balanced

TAUGHT = TINY.replace("training: {", "training: {teacher: runs/teachers, teacher_weight: 1.0, ")


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def test_trials_learn_from_a_checkpoint_of_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is relative to where the command runs; the workers' place is another."""
    search(tmp_path, n_trials=1)
    Path(load(tmp_path)["checkpoint"][0]).parent.rename(tmp_path / "runs" / "teachers")
    monkeypatch.chdir(tmp_path)
    result = search(tmp_path, TAUGHT, n_trials=2, study="taught")
    assert result.n_finished == 2
    frame = load(tmp_path, "taught")
    assert all(load_checkpoint(Path(path)).run["teacher"] for path in frame["checkpoint"])
    plain = search(tmp_path, TINY, n_trials=2, study="plain", overrides=("training.teacher_weight=1.0",))
    assert plain.n_finished == 2
    assert list(load(tmp_path, "plain")["accuracy"]) != list(frame["accuracy"])


def test_a_teacher_that_cannot_teach_is_found_before_anything_is_written(tmp_path: Path) -> None:
    space = write_space(tmp_path, TAUGHT)
    done = call(tmp_path, "run", space, "--executor", "local")
    assert done.returncode == 2
    assert done.stderr.startswith("mnet-search: training.teacher: no checkpoint at ")
    assert not (tmp_path / "study.db").exists()


def test_a_study_keeps_to_its_teacher_and_to_what_its_recipe_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tmp_path, n_trials=2)
    first, second = (Path(path).parent for path in load(tmp_path)["checkpoint"])
    monkeypatch.chdir(tmp_path)
    first.rename(tmp_path / "runs" / "teachers")
    search(tmp_path, TAUGHT, n_trials=1, study="taught")
    (tmp_path / "runs" / "teachers").rename(tmp_path / "runs" / "former")
    second.rename(tmp_path / "runs" / "teachers")
    with pytest.raises(MnetError, match=r"'taught' was begun with another teacher under 'runs/teachers' \(its digest"):
        search(tmp_path, TAUGHT, n_trials=2, study="taught")
    monkeypatch.setitem(RECIPES, "default", replace(RECIPES["default"], learning_rate=0.123))
    with pytest.raises(MnetError, match=r"another meaning of its recipe \(default.learning_rate: 0.3 -> 0.123\)"):
        search(tmp_path, n_trials=3)


def test_the_way_of_training_and_its_reason_stand_with_the_trial(tmp_path: Path) -> None:
    search(tmp_path, n_trials=1)
    search(tmp_path, n_trials=1, study="asked", overrides=("resources.memory_format=contiguous",))
    found = {}
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store, store.read() as connection:
        rows = connection.exec_driver_sql("SELECT environment FROM mnet_trials ORDER BY trial_id").scalars()
        found = [json.loads(row) for row in rows]
    assert [(row["way"], row["way_reason"], row["threads"]) for row in found] == [
        ("channels_last float32", "8 steps are too few to probe", 1),
        ("contiguous float32", "as asked", 1),
    ]


def test_workers_map_one_copy_of_the_images_and_need_no_source(tmp_path: Path) -> None:
    chosen = balanced(30)
    path = tmp_path / "digits.npz"
    np.savez(path, images=GREY[chosen][:, 0], labels=LABELS[chosen])
    text = TINY.replace("{name: digits, train_limit: 200}", "{name: npz, path: %s}" % path)  # noqa: UP031  # braces
    search(tmp_path, text, n_trials=1)
    (home,) = (tmp_path / "runs" / ".data").iterdir()
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store:
        digest = store.provenance("tiny")["data_digest"]
    assert digest.startswith(home.name)
    np.savez(path, images=255 - GREY[chosen][:, 0], labels=LABELS[chosen])
    with pytest.raises(MnetError, match=r"study 'tiny' was begun on other images \(their digest was .*--study NAME"):
        search(tmp_path, text, n_trials=2)
    assert len(load(tmp_path)) == 1
