"""Small real images for the tests of data readers: scikit-learn's digits, in grey and in made-up colours."""

import numpy as np
import pytest
import torch

from mnet_search.models.arch import MnetError
from mnet_search.search.data import Data, DataError, DataOptions, load, resize

GREY, LABELS = load(DataOptions()).train.images.numpy(), load(DataOptions()).train.labels.numpy()
"""1,079 digits (N, 1, 8, 8), of every class more than 100."""


def balanced(per_class: int, classes: int = 10) -> np.ndarray:
    """Positions of `per_class` digits of each class, classes taking turns."""
    return np.stack([np.flatnonzero(c == LABELS)[:per_class] for c in range(classes)], axis=1).ravel()


def colour(images: np.ndarray, side: int) -> np.ndarray:
    """(N, 1, 8, 8) -> (N, 3, side, side) with three different channels."""
    large = resize(torch.from_numpy(images), side).numpy()
    return np.concatenate([large, 255 - large, large // 2], axis=1)


def part(data: Data, name: str) -> tuple[int, ...]:
    return tuple(torch.bincount(getattr(data, name).labels).tolist())


def refuses(message: str, *, kind: type[MnetError] = DataError, **options: object) -> str:
    """The error of loading (one line that names the place), whose text must match."""
    with pytest.raises(kind, match=message) as caught:
        load(DataOptions(**options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)
