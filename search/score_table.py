"""Zero-cost scores of every network of a space, for a sampler to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mnet_search.models.arch import MnetError
from mnet_search.search.candidates import Candidates
from mnet_search.search.data import Data, StreamedSplit, stratified_subset
from mnet_search.search.zero_cost import score_features
from mnet_search.spaces.space import Space

BATCH_IMAGES = 64
MOST_SCORED = 2_000  # networks: each takes a tenth of a second and more


def score_table(
    space: Space, data: Data, seed: int, cache: Path
) -> Callable[[Candidates], Mapping[str, Sequence[float]]]:
    """What gives the scores that the space asks for, by the space's keys; a score that is no number stands below all
    others.

    They are taken at starting weights on one batch of training images, and kept in the file `cache`. Raises MnetError
    for a space that is too large for it.
    """
    names = space.file.search.scores
    if space.n_codes is None or space.n_codes > MOST_SCORED:
        many = f"{space.n_codes:,}" if space.n_codes else "infinitely many"
        raise MnetError(
            f"search.scores: every network of the space is scored beforehand, which is for {MOST_SCORED:,} codes at "
            f"most; this space has {many}: leave search.scores out"
        )

    def table(candidates: Candidates) -> Mapping[str, Sequence[float]]:
        archs = {row.key: space.arch(row.params) for row in candidates.rows}
        images, labels = training_batch(data, max(arch.input.height for arch in archs.values()))
        cache.parent.mkdir(parents=True, exist_ok=True)
        found = score_features(archs, names, images, labels, seed, cache, statistics=(data.mean, data.std))
        lowest = {name: min((s[name] for s in found.values() if s[name] == s[name]), default=0.0) for name in names}
        return {k: [s[name] if s[name] == s[name] else lowest[name] for name in names] for k, s in found.items()}

    return table


def training_batch(data: Data, resolution: int) -> tuple[Tensor, Tensor]:
    """BATCH_IMAGES training images uint8 (N, C, H, W), classes in proportion, one of each at least, and their labels.

    Pictures that are decoded on the way come at `resolution`, others in the size in which they are stored.
    """
    part = data.train
    count = min(max(BATCH_IMAGES, data.facts.classes), len(part))
    chosen = torch.from_numpy(stratified_subset(part.labels.cpu().numpy(), count, seed=0))
    if isinstance(part, StreamedSplit):
        part = part.at(resolution, torch.device("cpu"))
    return next(iter(part.batches([chosen])))
