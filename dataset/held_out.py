"""Cuts a stratified validation set from a source that comes without one."""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

from dataset.base import Item, Source, sample_name
from seeding import derive_seed


def held_out_split(labels: np.ndarray, share: float, seed: int) -> Tuple[np.ndarray, np.ndarray]:
    """Indices [train], [held out] of ceil(share * N) held-out samples, ascending, the same for a seed everywhere.

    Every class gives its share, rounded down; the samples still missing come from the classes that rounding hit hardest.
    Where images have several labels [N, K], all are drawn alike.
    (scikit-learn's splitter does the same, but importing it takes longer than reading the data.)
    """
    if labels.ndim == 2:
        labels = np.zeros(len(labels), dtype=np.int64)
    classes, counts = np.unique(labels, return_counts=True)
    total = min(len(labels), math.ceil(share * len(labels) - 1e-9))
    exact = counts * (total / max(1, len(labels)))
    taken = np.floor(exact + 1e-9).astype(np.int64)
    hardest_hit = np.argsort(taken - exact, kind="stable")
    taken[hardest_hit[: total - taken.sum()]] += 1
    generator = np.random.default_rng(derive_seed(seed, "held out"))
    is_held_out = np.zeros(len(labels), dtype=bool)
    for label, count in zip(classes, taken):
        is_held_out[generator.permutation(np.flatnonzero(labels == label))[:count]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


class Subset:
    """Some samples of a source, as a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.labels = source.labels[indices]
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.is_cheap, self.is_ready = source.is_cheap, source.is_ready
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self._indices)

    def item(self, index: int) -> Item:
        return self._source.item(int(self._indices[index]))

    def path(self, index: int) -> str:
        return sample_name(self._source, int(self._indices[index]))
