"""Learning from a teacher: where teachers come from, what they are refused for, and what the loss is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mnet_search.models.arch import MnetError
from mnet_search.models.checkpoints import Checkpoint, save_checkpoint
from mnet_search.models.factory import build
from mnet_search.models.families import create
from mnet_search.search.data import Data, DataOptions, load, normalise, resize
from mnet_search.search.recipes import TrainingOptions
from mnet_search.search.teachers import Teacher, load_teacher
from mnet_search.search.training import train

NETWORK = {"width": 0.1, "depth": "shallow", "stem_stride": 1, "classes": 10, "in_channels": 1}
STUDENT = create("mobilenet_v1", resolution=9, **NETWORK)
LARGE = create("mobilenet_v1", resolution=16, **{**NETWORK, "width": 0.4})


def digits(limit: int = 300) -> Data:
    return load(DataOptions(train_limit=limit, validation=0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a larger network at a larger resolution."""
    path = tmp_path_factory.mktemp("teacher")
    options = TrainingOptions(epochs=6, batch_size=32)
    arguments = {"resolution": 16, "seed": 0, "checkpoint": path / "last.pt", "network": LARGE.to_json()}
    rows = list(train(build(LARGE, 0), digits(1079), options, **arguments))  # type: ignore[arg-type]
    assert max(row.validation_accuracy for row in rows) > 0.8
    return path


def test_a_teacher_sees_the_students_images_as_it_was_trained_to(folder: Path) -> None:
    data = digits()
    teacher = load_teacher(str(folder / "best.pt"), data.facts)
    read = teacher.reader(data.mean, data.std, torch.device("cpu"))
    small = normalise(resize(data.validation.images, 9), data.mean, data.std)
    large = normalise(resize(data.validation.images, 16), teacher.mean, teacher.std)
    direct = teacher.module(large)
    assert (read(normalise(resize(data.validation.images, 16), data.mean, data.std)) - direct).abs().max() < 1e-4
    right = (read(small).argmax(1) == data.validation.labels).float().mean()
    assert right > 0.6  # enlarged from 9 to 16 pixels
    assert not read(small).requires_grad
    assert (teacher.mean, teacher.std) == (digits(1079).mean, digits(1079).std) != (data.mean, data.std)


def test_a_student_learns_from_its_teacher_alone_where_the_weight_is_one(folder: Path) -> None:
    """With the labels spoilt, what the student gets right it has from the teacher."""
    data = digits(1079)
    spoilt = replace(data, train=replace(data.train, labels=torch.zeros_like(data.train.labels)))
    teacher = load_teacher(str(folder), data.facts)
    options = TrainingOptions(epochs=4, batch_size=32, teacher_weight=1.0)
    student = create("mobilenet_v1", resolution=12, **{**NETWORK, "width": 0.25})
    rows = list(train(build(student, 0), spoilt, options, resolution=12, seed=0, teacher=teacher))
    assert rows[-1].validation_accuracy > 0.5
    alone = list(train(build(student, 0), spoilt, options, resolution=12, seed=0))
    assert alone[-1].validation_accuracy < 0.2


def test_the_loss_is_the_divergence_at_the_temperature_and_the_labels_rest(folder: Path) -> None:
    data = digits(40)
    teacher = load_teacher(str(folder), data.facts)
    module = build(STUDENT, 0)
    inputs = normalise(resize(data.train.images, 9), data.mean, data.std)
    read = teacher.reader(data.mean, data.std, torch.device("cpu"))
    with torch.no_grad():
        own, taught = module.train()(inputs), read(inputs)
    divergence = F.kl_div(F.log_softmax(own / 3, 1), F.softmax(taught / 3, 1), reduction="batchmean")
    expected = 0.7 * 9 * divergence + 0.3 * F.cross_entropy(own, data.train.labels)
    plain = {"crop": 0.0, "flip": False, "label_smoothing": 0.0, "teacher_weight": 0.7, "teacher_temperature": 3.0}
    options = TrainingOptions(epochs=1, batch_size=40, **plain)  # type: ignore[arg-type]
    row = next(train(build(STUDENT, 0), data, options, resolution=9, seed=0, teacher=teacher))
    assert row.train_loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_very_sure_teacher_is_no_divergence(folder: Path) -> None:
    """Its part of the loss grows with the square of the temperature."""
    data = digits(100)
    teacher = load_teacher(str(folder), data.facts)
    with torch.no_grad():
        for p in list(teacher.module.parameters())[-2:]:
            p *= 8
    options = TrainingOptions(epochs=1, batch_size=50, learning_rate=1e-3, teacher_temperature=8.0)
    (row,) = train(build(STUDENT, 0), data, options, resolution=9, seed=0, teacher=teacher)
    assert row.train_loss > 10 * math.log(10)


# ---------------------------------------------------------------- refused


def test_a_teacher_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(MnetError, match=r"^training.teacher: no checkpoint at '.*'; give a .pt file of a trained"):
            load_teacher(str(name), digits().facts)


def test_a_teacher_with_other_classes_or_channels_is_refused(folder: Path) -> None:
    facts = digits().facts
    letters = replace(facts, name="letters", class_names=tuple("ABCDEFGHIJ"))
    with pytest.raises(MnetError, match=r"knows other classes, 10 \(0, 1, 2, ...\), than letters has, 10 \(A, B, C"):
        load_teacher(str(folder), letters)
    with pytest.raises(MnetError, match=r"knows other classes, 10 \(0, 1, 2, ...\), than digits has, 3 \(0, 1, 2"):
        load_teacher(str(folder), replace(facts, classes=3, class_names=("0", "1", "2")))
    with pytest.raises(MnetError, match="takes images of 1 channels, the data's have 3"):
        load_teacher(str(folder), replace(facts, channels=3))
    with pytest.raises(MnetError, match=r"'torchvision:resnet18' knows other classes, 1000 \(tench, goldfish"):
        load_teacher("torchvision:resnet18", facts)
    with pytest.raises(MnetError, match=r"'torchvision:resnet1': .*give a classifier of torchvision's"):
        load_teacher("torchvision:resnet1", facts)


def test_a_checkpoint_that_does_not_say_how_its_network_is_built_is_no_teacher(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", Checkpoint({}, [], {"weight": torch.zeros(2)}))
    with pytest.raises(MnetError, match="does not say how its network is built, for an older mnet-search wrote it"):
        load_teacher(str(tmp_path / "last.pt"), digits().facts)


def test_torchvisions_weights_are_fetched_and_read_at_their_own_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made up, since the published ones would be downloaded, and laid where torch keeps what it has fetched."""
    from torchvision import models

    facts = replace(digits().facts, channels=3, classes=1000, class_names=tuple(map(str, range(1000))))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = models.get_model_weights("squeezenet1_1").DEFAULT  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(MnetError, match="weights of 'torchvision:squeezenet1_1' could not be downloaded: no network"):
        load_teacher("torchvision:squeezenet1_1", facts)
    made = models.get_model("squeezenet1_1", weights=None)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(made.state_dict(), tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda url, **_: made.state_dict())
    teacher = load_teacher("torchvision:squeezenet1_1", facts)
    assert isinstance(teacher, Teacher)
    assert (teacher.resolution, teacher.mean[0], teacher.std[0]) == (224, 0.485, 0.229)
    found = teacher.reader((0.5,) * 3, (0.25,) * 3, torch.device("cpu"))(torch.zeros(2, 3, 32, 32))
    assert found.shape == (2, 1000)
    assert math.isfinite(found.sum().item())


def no_network(*_: object, **__: object) -> None:
    raise OSError("no network")
