"""Searches over how networks are trained and on which images: one training a candidate, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.data import DataError, DataOptions
from mnet_search.search.data import load as load_images
from mnet_search.search.run import open_space
from mnet_search.spaces.schema import Data, Training
from mnet_search.spaces.space import load_space
from mnet_search.studies.export import read_config
from mnet_search.studies.store import Store

from processes import TINY, call, load, search, write_space
from real_digits import GREY, LABELS, balanced, colour

RECIPES = """\
family: mobilenet_v1
data: {name: digits, train_limit: 200}
parameters:
  width: [0.1, 0.12]
  resolution: 9
  stem_stride: 1
  depth: shallow
  training.recipe: [default, adam_plain]
  training.batch_size: {values: [20], when: {training.recipe: adam_plain}}
objectives: {accuracy: maximize, params: minimize}
training: {epochs: 1, batch_size: 50}
search: {sampler: grid}
resources: {concurrency: 1}
"""
PICTURES = """\
family: [lenet5, mobilenet_cifar]
data: {name: cifar10, path: pictures}
parameters:
  resolution: 32
  training.recipe: {values: [default, adam_plain], when: {family: lenet5}}
  data.train_limit: {values: [40, 60], when: {training.recipe: adam_plain}}
objectives: {accuracy: maximize, params: minimize}
training: {epochs: 1, batch_size: 20}
search: {sampler: grid}
resources: {concurrency: 1}
"""


@pytest.fixture(autouse=True)
def storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process find the study that a search here made."""
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def space_key(folder: Path, row: pd.Series) -> str:
    """The key of a trial, from the study alone."""
    space = load_space(folder / "tiny.yaml")
    with Store(f"sqlite:///{folder / 'study.db'}") as store:
        return space.key(store.chosen("tiny")[row["number"]], row["arch_id"])


def check_once(folder: Path, n_trials: int) -> pd.DataFrame:
    """Every trial finished, each its own candidate, in a folder of its own that is named by it."""
    frame = load(folder)
    assert frame["state"].tolist() == ["finished"] * n_trials, frame[["state", "reason"]]
    keys = [space_key(folder, row) for _, row in frame.iterrows()]
    assert len(set(keys)) == n_trials
    names = [Path(path).parent.name for path in frame["checkpoint"]]
    assert names == [f"{key}-seed0" for key in keys]
    return frame


def configs(folder: Path) -> list[Any]:
    """The exported config of every trial, in order."""
    found = []
    for number in load(folder)["number"]:
        done = call(folder, "export", "tiny", "--trial", number, "--format", "config", "-o", "out", "--json")
        assert done.returncode == 0, done.stderr
        found.append(read_config(folder / json.loads(done.stdout)["files"][0])[0])
    return found


def test_every_candidate_is_trained_once_with_its_own_recipe(tmp_path: Path) -> None:
    assert search(tmp_path, RECIPES, n_trials=3).n_new == 3
    before = load(tmp_path)
    assert search(tmp_path, RECIPES).n_new == 1  # the grid is 2 networks x 2 recipes
    frame = check_once(tmp_path, 4)
    columns = ["arch_id", "accuracy", "finished", "attempts"]
    pd.testing.assert_frame_equal(frame.loc[before.index, columns], before[columns])
    assert frame["arch_id"].nunique() == 2
    assert frame["accuracy"].nunique() > 2
    ways = [Training(epochs=1, batch_size=50), Training(recipe="adam_plain", epochs=1, batch_size=20)]
    found = configs(tmp_path)
    assert [config.training for config in found] == ways * 2
    assert {config.data for config in found} == {Data(name="digits", train_limit=200)}
    shown = call(tmp_path, "show", "tiny", "--all")
    assert "training.recipe=adam_plain training.batch_size=20" in shown.stdout
    assert "Beside what others printed" not in shown.stdout
    assert json.loads(call(tmp_path, "show", "tiny", "--json").stdout)["printed"] == []


def test_a_sampler_exhausts_the_candidates_and_repeats_none(tmp_path: Path) -> None:
    result = search(tmp_path, RECIPES.replace("grid", "tpe"), n_trials=9)
    assert (result.n_new, result.exhausted) == (4, True)
    check_once(tmp_path, 4)


def test_validate_counts_networks_and_candidates(tmp_path: Path) -> None:
    path = write_space(tmp_path, RECIPES + "constraints: {params: {max: 23k}}\n")
    shown = call(tmp_path, "validate", path).stdout
    assert "4 codes (all looked at), 2 distinct networks" in shown
    assert "searched over (training.recipe, training.batch_size): 4 candidates, each trained once" in shown
    assert "(params at most 23 k): 1 networks (2 candidates), 50%" in shown, shown
    content = json.loads(call(tmp_path, "validate", path, "--json").stdout)
    assert [content[key] for key in ("networks", "candidates", "feasible", "feasible_candidates")] == [2, 4, 1, 2]
    plain = call(tmp_path, "validate", write_space(tmp_path)).stdout
    assert "candidates" not in plain


def test_a_study_of_the_version_before_goes_on(tmp_path: Path) -> None:
    search(tmp_path, n_trials=1)
    with Store(f"sqlite:///{tmp_path / 'study.db'}") as store, store.engine.begin() as connection:
        row = store.row("tiny")
        for name in ("space", "identity"):
            content = dict(row[name])
            content["training"] = {k: content["training"][k] for k in ("recipe", "epochs", "batch_size")}
            content["training"]["learning_rate"] = None
            data = content["data"]
            content["data"] = {k: data[k] for k in data if k not in ("train_limit", "train_fraction", "stream")}
            content["data"]["limit"] = data["train_limit"]
            command = f"UPDATE mnet_studies SET {name} = ?, space_hash = 'of_before'"
            connection.exec_driver_sql(command, (json.dumps(content),))
    assert search(tmp_path, n_trials=2).n_new == 1
    assert call(tmp_path, "resume", "tiny", "--executor", "local", "--n-trials", 3, "-q").returncode == 0
    assert len(load(tmp_path)) == 3
    assert {config.data for config in configs(tmp_path)} == {Data(name="digits", train_limit=200)}
    with pytest.raises(MnetError, match=r"\(data\.train_limit: 200 -> 100\)"):
        search(tmp_path, TINY.replace("train_limit: 200", "train_limit: 100"))


# ---------------------------------------------------------------- data, and the printed figures


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a small cifar-10-batches-bin: five files of 20 images and a test file of 10, classes balanced."""
    chosen = balanced(11)
    images, labels = colour(GREY[chosen], 32), LABELS[chosen].astype(np.uint8)
    folder = tmp_path / "pictures" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for i, name in enumerate(names):
        part = slice(20 * i, min(20 * i + 20, 110))
        records = np.concatenate([labels[part, None], images[part].reshape(part.stop - part.start, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
    return tmp_path


def test_each_trial_has_its_own_data_and_stands_beside_what_was_printed(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    assert search(pictures, PICTURES).n_new == 4
    frame = check_once(pictures, 4)
    with Store(f"sqlite:///{pictures / 'study.db'}") as store:
        facts = store.provenance("tiny")
    assert [row["train_images"] for row in facts["data"]] == [80, 40, 60]
    assert len({row["data_digest"] for row in facts["data"]}) == 3
    assert facts["train_images"] == 80
    found = configs(pictures)
    assert [config.data.train_limit for config in found] == [None, 40, 60, None]
    assert {config.measured["validation_images"] for config in found} == {20}

    content = json.loads(call(pictures, "show", "tiny", "--json").stdout)["printed"]
    assert [row["system"] for row in content] == ["MobileNet-CIFAR (TensorFlow)", "LeNet5"]
    tensorflow, lenet = content
    assert (lenet["accuracy_percent"], lenet["params"], lenet["our_params"]) == (54.11, 62_006, 62_006)
    assert (tensorflow["accuracy_percent"], tensorflow["our_params"]) == (None, 75_914)
    ways = [(one["recipe"], one["epochs"], one["train_images"], one["n"]) for one in lenet["ours"]]
    plain = "adam_plain, batch 20"
    assert ways == [("default, batch 20", 1, 80, 1), (plain, 1, 40, 1), (plain, 1, 60, 1)]
    assert [one["accuracy"] for one in lenet["ours"]] == frame["accuracy"].tolist()[:3]
    lines = call(pictures, "show", "tiny").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Beside what others printed"))
    assert "trained on" in lines[start + 1]
    first = next(line for line in lines if line.startswith("LeNet5"))
    for text in ("54.11%", "Adam 1e-3, batch 32", "62,006", "default, batch 20", "1 epoch of 80 images"):
        assert text in first
    assert "1 epoch of 40 images" in lines[lines.index(first) + 1]


def test_other_networks_of_a_family_are_not_those_that_were_printed(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    text = "family: lenet5\ndata: {name: cifar10, path: pictures}\nparameters: {resolution: 32, width: [0.5, 1.0]}\n"
    tail = "training: {epochs: 1}\nsearch: {sampler: grid}\nresources: {concurrency: 1}\n"
    search(pictures, text + tail, n_trials=1)
    assert json.loads(call(pictures, "show", "tiny", "--json").stdout)["printed"][0]["ours"] == []
    assert "LeNet5" in call(pictures, "show", "tiny").stdout
    search(pictures, text + tail)
    (lenet,) = json.loads(call(pictures, "show", "tiny", "--json").stdout)["printed"]
    assert [one["n"] for one in lenet["ours"]] == [1]


def test_bad_data_of_any_setting_is_found_before_anything_is_written(pictures: Path) -> None:
    text = "data: {train_limit: 200}\nfamily: lenet5\nparameters: {resolution: 32, data.train_limit: [100, 7]}\n"
    with pytest.raises(DataError, match="7 images cannot show all 10 classes"):
        search(pictures, text)
    assert not (pictures / "study.db").exists()
    many = text.replace("[100, 7]", "[101, 102, 103, 104, 105, 106, 107, 108, 109]")
    with pytest.raises(MnetError, match=r"data\.train_limit: more than 8 different settings of the data"):
        open_space(write_space(pictures, many), [])


def test_data_with_other_channels_trains_networks_of_their_own(pictures: Path) -> None:
    folder = pictures / "pictures"
    text = "family: lenet5\nparameters:\n  resolution: 32\n  data.name: [digits, cifar10]\n"
    text += f"  data.path: {{values: ['{folder}'], when: {{data.name: cifar10}}}}\n  data.train_limit: 60\n"
    text += "training: {epochs: 1}\nsearch: {sampler: grid}\nresources: {concurrency: 1}\n"
    assert search(pictures, text).n_new == 2
    frame = check_once(pictures, 2)
    assert [options["in_channels"] for options in frame["options"]] == [1, 3]
    with Store(f"sqlite:///{pictures / 'study.db'}") as store:
        digests = [row["data_digest"] for row in store.provenance("tiny")["data"]]
    options = DataOptions("digits", train_limit=60), DataOptions("cifar10", path=str(folder), train_limit=60)
    assert digests == [load_images(one).digest for one in options]
    (lenet,) = json.loads(call(pictures, "show", "tiny", "--json").stdout)["printed"]
    assert [one["train_images"] for one in lenet["ours"]] == [60]
