"""Parts of an export on their own: comparing, names, diagrams, networks of torchvision."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mnet_search.models.checkpoints import Checkpoint
from mnet_search.models.complexity import costs
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.data import StreamedSplit, normalise
from mnet_search.search.data_files import Facts, Pictures
from mnet_search.studies import model_card, onnx_files
from mnet_search.studies.diagram import flowchart, stages, table
from mnet_search.studies.parity import compare
from mnet_search.studies.trained import ExportImages, FromData, LabelledImages, Trained, stem

from small_networks import SMALL


def test_a_network_of_torchvision_from_a_checkpoint_before_0_2() -> None:
    """It says nothing of how its images are normalised: the images do."""
    torch.manual_seed(0)
    arch = create("torchvision:squeezenet1_1", classes=4, resolution=40)
    pixels = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = LabelledImages(pixels.numpy(), np.zeros(5, np.int64))
    given = ExportImages(
        mean, std, tuple("abcd"), images, images, lambda: iter([images]),
        lambda batch: normalise(torch.from_numpy(batch), mean, std).numpy(),
    )  # fmt: skip
    config = {"arch": {"family": arch.family, "options": dict(arch.options), "arch_id": arch.id}, "seed": 3}
    row = pd.Series({"accuracy": 0.5})
    trained = Trained("s", 7, "s-trial7", config, row, pd.DataFrame(), {}, FromData(lambda _: given, lambda _: ""))
    trained.__dict__["checkpoint"] = Checkpoint({"data": "x"}, [], build(arch, 5).state_dict())
    (made,) = onnx_files.make(trained, int8=False)
    session = onnxruntime.InferenceSession(made.content, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list("abcd")
    assert made.facts["parity"]["images"] == 5


def test_compare_by_hand() -> None:
    expected = np.array([[1.0, 2.0], [3.0, -200.0], [0.5, 0.0]], np.float32)
    given = expected + np.array([[0.0, 0.5], [0.25, -2.0], [0.0, 1.0]], np.float32)
    found = compare(given, expected, np.array([1, 1, 0]))
    assert (found.images, found.max_difference, found.max_relative) == (3, 2.0, 1.0)
    assert (found.same_top1, found.accuracy, found.accuracy_torch) == pytest.approx((2 / 3, 1 / 3, 2 / 3))
    assert math.isnan(compare(given * np.nan, expected, np.array([1, 1, 0])).max_relative)


@given(st.text(min_size=1), st.integers(0, 10**6))
def test_names_of_files_stay_in_their_folder(study_name: str, number: int) -> None:
    folder = Path("/exports")
    assert (folder / f"{stem(study_name, number)}.yaml").parent == folder
    assert stem("../../etc/passwd", 3) == ".._.._etc_passwd-trial3"


@pytest.mark.parametrize("family", [*sorted(SMALL), "torchvision:squeezenet1_1"])
def test_stages_add_up_and_meet(family: str) -> None:
    arch = create(family, **{"classes": 10, **SMALL.get(family, {"resolution": 64})})
    found, total = stages(arch), costs(arch)
    assert (sum(row.params for row in found), sum(row.mult_adds for row in found)) == (total.params, total.mult_adds)
    assert (found[0].input, found[-1].output.channels) == (arch.input, 10)
    assert all(one.output == other.input for one, other in pairwise(found))
    lines = table(found).splitlines()
    assert len(lines) == len(found) + 2 and lines[-1].split()[-1] == f"{total.mult_adds:,}"
    chart = flowchart(arch, found, 10)
    assert all(f's{index}["{row.name}<br/>' in chart for index, row in enumerate(found))


def test_the_card_resizes_pictures_as_training_saw_them(tmp_path: Path) -> None:
    """Of a folder that is read picture by picture: the shorter side, then the middle, within rounding."""
    coarse = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    for index, size in enumerate([(301, 203), (90, 160)]):
        (tmp_path / f"class{index}").mkdir()
        picture = Image.fromarray(coarse[index]).resize(size, Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"class{index}" / "a.png")
    facts = Facts("folder", 3, 2, 64, 64, ("class0", "class1"), flip=False, licence="")
    names = np.array([b"class0/a.png", b"class1/a.png"])
    split = StreamedSplit.of(Pictures(tmp_path, names, np.arange(2)), facts).at(64, torch.device("cpu"))
    ((seen, _),) = split.batches([torch.arange(2)])
    code = model_card.SNIPPET.split("\n\n\n")[1].format(
        mode="RGB", resized=model_card.MIDDLE.format(width=64, height=64), width=64, height=64, channels=3
    )
    found: dict[str, Any] = {"np": np, "Image": Image}
    exec(code, found)
    given = np.stack([found["pixels"](tmp_path / f"class{index}" / "a.png") for index in range(2)])
    assert np.abs(given * 255 - seen.numpy()).max() <= 1.01
