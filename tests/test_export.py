"""Exports that run elsewhere: every file of a real front, checked by processes that have nothing of ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.search.data import DataOptions, normalise
from mnet_search.search.data import load as load_data
from mnet_search.studies.export import read_config

from exports import URL, read_registry_once, searched, trained_of
from processes import call, load

ROOT = Path(__file__).resolve().parents[1]
ALL = "config,weights,torch_export,onnx,card"
SUFFIXES = [".yaml", ".safetensors", ".pt2", ".onnx", "-int8.onnx", ".md"]
pytestmark = pytest.mark.xdist_group("export")  # one worker, so that the study is searched once


@pytest.fixture(scope="module", autouse=True)
def one_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read_registry_once(patch)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return searched(tmp_path_factory.getbasetemp())


@dataclass(frozen=True)
class Export:
    """Where it is, its networks by the index, and the lines that the command printed."""

    folder: Path
    networks: list[dict[str, Any]]
    printed: list[str]

    def member(self, index: int) -> tuple[Path, dict[str, Any]]:
        """The path of its files without their endings, and its entry."""
        return self.folder / f"tiny-trial{self.networks[index]['trial']}", self.networks[index]


@pytest.fixture(scope="module")
def exported(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The whole front in every format that is installed by default."""
    folder = tmp_path_factory.mktemp("elsewhere") / "new" / "exports"
    done = call(study, "export", "tiny", "--front", "--format", ALL, "--int8", "-o", folder, *URL)
    assert done.returncode == 0, done.stderr
    return Export(folder, json.loads((folder / "index.json").read_text())["networks"], done.stdout.splitlines())


def torch_scores(path: Path, images: torch.Tensor) -> np.ndarray:
    """By the exported config and weights, through training's own normalisation."""
    from safetensors.torch import load_file

    _, arch = read_config(path.with_suffix(".yaml"))
    module = build(arch)
    module.load_state_dict(load_file(path.with_suffix(".safetensors")))
    data = load_data(DataOptions())
    with torch.no_grad():
        return module.eval()(normalise(images, data.mean, data.std)).numpy()


def validation() -> tuple[torch.Tensor, np.ndarray]:
    split = load_data(DataOptions()).validation.at(12, torch.device("cpu"))
    return split.images, split.labels.numpy()


# ---------------------------------------------------------------- files elsewhere

BARE = """\
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "mnet_search", "onnx", "pandas", "sklearn"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
cards, images, out = sys.argv[1].split(","), sys.argv[2:-1], sys.argv[-1]
import numpy
for card in cards:
    code = open(card + ".md", encoding="utf-8").read().split("```python\\n")[1].split("```")[0]
    sys.argv = [card, *images[:2]]
    found = {}
    exec(code, found)
    numpy.save(f"{out}/{card}.npy", found["scores"](images))
"""


def test_every_onnx_of_a_front_runs_by_its_card_where_nothing_of_ours_is(exported: Export, tmp_path: Path) -> None:
    assert len(exported.networks) == 2
    images, _ = validation()
    for index, image in enumerate(images.numpy()):
        Image.fromarray(image[0]).save(tmp_path / f"{index:04}.png")
    names = [f"tiny-trial{network['trial']}" for network in exported.networks]
    pictures = sorted(map(str, tmp_path.glob("*.png")))
    command = [sys.executable, "-c", BARE, ",".join(names), *pictures, str(tmp_path)]
    done = subprocess.run(command, cwd=exported.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split()
    for index, name in enumerate(names):
        scores, expected = np.load(tmp_path / f"{name}.npy"), torch_scores(exported.folder / name, images)
        assert scores.shape == expected.shape == (len(images), 10)
        assert (np.abs(scores - expected) / np.maximum(1, np.abs(expected))).max() < 1e-4
        assert printed[4 * index : 4 * index + 4] == [
            pictures[0], str(expected[0].argmax()), pictures[1], str(expected[1].argmax()),
        ]  # fmt: skip


def test_an_onnx_file_says_what_it_is(exported: Export) -> None:
    path, network = exported.member(0)
    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    (given,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("images", ["batch", 1, 12, 12], "tensor(float)")
    assert (scores.name, scores.shape) == ("scores", ["batch", 10])
    about = session.get_modelmeta().custom_metadata_map
    data = load_data(DataOptions())
    assert {name: json.loads(about[name]) for name in ("classes", "mean", "std", "trial", "seed", "parity")} == {
        "classes": list("0123456789"),
        "mean": list(data.mean),
        "std": list(data.std),
        "trial": network["trial"],
        "seed": 0,
        "parity": network["parity"],
    }
    assert json.loads(about["input"]) == {
        "name": "images", "shape": ["batch", 1, 12, 12], "dtype": "float32", "range": [0, 1],
    }  # fmt: skip
    _, arch = read_config(path.with_suffix(".yaml"))
    assert (about["arch_id"], about["family"], about["study"]) == (arch.id, "mobilenet_v1", "tiny")
    assert (int(about["params"]), int(about["mult_adds"])) == (costs(arch).params, costs(arch).mult_adds)
    assert float(about["validation_accuracy"]) == network["accuracy"] == network["parity"]["accuracy"]
    for batch in (1, 2, 33):
        assert session.run(None, {"images": np.zeros((batch, 1, 12, 12), np.float32)})[0].shape == (batch, 10)


def test_nothing_of_this_machine_is_in_the_files(exported: Export, study: Path) -> None:
    paths = [path for path in exported.folder.iterdir() if path.suffix != ".yaml"]  # a config names where it is from
    assert len(paths) == 12
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".pt2":  # a zip archive, whose texts may be compressed
            with zipfile.ZipFile(path) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        for secret in (str(ROOT), str(Path.home()), str(study), "site-packages"):
            assert secret.encode() not in content, (path.name, secret)


def test_a_torch_program_has_the_same_scores_at_any_batch(exported: Export) -> None:
    path, _ = exported.member(1)
    program = torch.export.load(path.with_suffix(".pt2")).module()
    images, _ = validation()
    expected = torch_scores(path, images)
    for batch in (1, len(images)):
        found = program(images[:batch].float() / 255).numpy()
        assert np.abs(found - expected[:batch]).max() < 1e-4


def test_eight_bits_are_measured_on_all_validation_images(exported: Export) -> None:
    path, network = exported.member(0)
    small = path.with_name(f"{path.name}-int8.onnx")
    session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
    images, labels = validation()
    top = session.run(None, {"images": images.float().numpy() / np.float32(255)})[0].argmax(1)
    found = network["int8"]
    assert found["accuracy_int8"] == pytest.approx((top == labels).mean())
    assert found["accuracy_float32"] == pytest.approx(network["accuracy"])
    assert (found["images"], found["calibration_images"]) == (len(labels), 512)
    sizes = [path.with_suffix(".onnx").stat().st_size, small.stat().st_size]
    assert [found["bytes_float32"], found["bytes_int8"]] == sizes
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(small).graph.node}
    assert json.loads(session.get_modelmeta().custom_metadata_map["int8"])["accuracy_int8"] == found["accuracy_int8"]


def test_calibration_sees_training_images_only(study: Path) -> None:
    images = trained_of(study, 0).images
    seen = {image.tobytes() for image in images.calibration.images}
    data = load_data(DataOptions())
    training = {image.tobytes() for image in data.train.at(12, torch.device("cpu")).images.numpy()}
    assert seen <= training
    assert np.bincount(images.calibration.labels).min() > 40, "classes in proportion"
    assert len(images.checked) == sum(len(part) for part in images.validation()) == len(data.validation)


def test_the_index_has_every_member(exported: Export, study: Path) -> None:
    frame, text = load(study).set_index("number"), (exported.folder / "index.md").read_text()
    for network in exported.networks:
        assert network["files"] == [f"tiny-trial{network['trial']}{suffix}" for suffix in SUFFIXES]
        row = frame.loc[network["trial"]]
        assert [network[name] for name in ("arch_id", "accuracy", "params")] == row[
            ["arch_id", "accuracy", "params"]
        ].tolist()
        assert network["parity"]["max_relative"] < 1e-4 and network["parity"]["same_top1"] == 1
        assert f"| {network['trial']} | mobilenet_v1 `{row['arch_id']}` | {row['accuracy']:.2%} |" in text
    names = [*(name for network in exported.networks for name in network["files"]), "index.json", "index.md"]
    assert sorted(names) == sorted(path.name for path in exported.folder.iterdir())
    assert exported.printed[: len(names)] == [str(exported.folder / name) for name in names]


def test_the_card_says_it_all(exported: Export, study: Path) -> None:
    path, network = exported.member(1)
    card = path.with_suffix(".md").read_text()
    row = load(study).set_index("number").loc[network["trial"]]
    curve = re.findall(r"^\| [1-3] \|.*$", card, re.MULTILINE)
    assert len(curve) == 3 and f"| {row['accuracy']:.4g} |" in curve[-1]
    for text in (
        f"| params | {row['params']:,} | trainable, exact |",
        f"| mult-adds | {row['mult_adds']:,} |",
        f"{row['accuracy']:.2%} | one run, after its last epoch, on 359 images: sampling error",
        f"quartiles {row['latency_q1_ms']:.3g} to {row['latency_q3_ms']:.3g} ms; on ",
        "UCI ML hand-written digits",
        load_data(DataOptions()).digest,
        f"mnet-search train {path.name}.yaml",
        "The ONNX file beside torch: 359 validation images",
        "calibrated on 512 training images",
        "```mermaid\nflowchart TD",
        "xychart-beta",
        f"| `{path.name}-int8.onnx` |",
        f"torch {torch.__version__.partition('+')[0]}",
    ):
        assert text in card, text


# ---------------------------------------------------------------- what is printed, and what is replaced


def test_people_read_the_checks_and_what_to_type_next(exported: Export) -> None:
    path, network = exported.member(0)
    checks = [line for line in exported.printed if line.startswith(f"trial {network['trial']}, ")]
    same = "same class first in 100.00%"
    accuracy = rf"{network['accuracy']:.2%}"
    start = "ONNX: 359 validation images, largest difference of a score"
    assert re.fullmatch(rf"trial \d, {start} \d\.\de-0\d, {same}, accuracy {accuracy} \(torch {accuracy}\)", checks[0])
    assert checks[1].startswith(f"trial {network['trial']}, 8 bits: accuracy {accuracy} in float32, ")
    assert exported.printed[-1] == f"Next:  mnet-search train {path}.yaml"


def test_index_files_are_replaced_only_by_force(study: Path, tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("mine")
    asked = ("export", "tiny", "--front", "--format", "config", "-o", tmp_path, *URL)
    refused = call(study, *asked)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"{tmp_path}/index.md exists already; give --force to replace it" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["index.md"]
    assert call(study, *asked, "--force").returncode == 0
    assert (tmp_path / "index.md").read_text().startswith("# Networks of study tiny\n")


def test_a_front_goes_to_a_url_with_its_index(study: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    done = call(study, "export", "tiny", "--front", "--format", "config,card", "-o", "memory://out/a", "--json", *URL)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"][-2:] == ["memory://out/a/index.json", "memory://out/a/index.md"]
    assert "/out/a/tiny-trial0.md" in MemoryFileSystem.store
    MemoryFileSystem.store.clear()
