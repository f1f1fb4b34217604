"""One small real study that the tests of exports share: two networks on digits."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from mnet_search.search.show_export import images_of, licence_of
from mnet_search.studies.export import select
from mnet_search.studies.frame import load as load_frame
from mnet_search.studies.store import Store
from mnet_search.studies.trained import FromData, Trained

from processes import search

SPACE = """\
description: two networks on digits, the larger one better, for tests
family: mobilenet_v1
data: {name: digits}
parameters:
  width: [0.1, 0.4]
  resolution: 12
  depth: 0.2
  stem_stride: 1
objectives: {accuracy: maximize, latency_ms: minimize, params: minimize}
training: {epochs: 3, batch_size: 100}
search: {sampler: grid, n_trials: 2, seed: 0}
resources: {concurrency: 1}
"""
URL = ("--storage", "sqlite:///study.db")


@cache
def searched(base: Path) -> Path:
    """The folder of the study below pytest's own; searched once in a process."""
    folder = base / "export-study"
    folder.mkdir()
    search(folder, SPACE)
    return folder


def trained_of(study: Path, number: int) -> Trained:
    with Store(f"sqlite:///{study / 'study.db'}") as store:
        rows = select(load_frame(store, "tiny"), store.objectives("tiny"), str(number))
        return Trained.read(store, "tiny", rows.iloc[0], FromData(images_of, licence_of))


def read_registry_once(patch: pytest.MonkeyPatch) -> None:
    """As in test_onnx.py: torch reads its 500 ONNX functions once, and not at each export."""
    with suppress(ImportError, AttributeError):
        registry = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        patch.setattr(registry, "from_torchlib", staticmethod(cache(registry.from_torchlib)))
