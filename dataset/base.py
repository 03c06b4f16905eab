"""What every data set is to the loader."""

from __future__ import annotations

import math
from typing import Protocol, Tuple

import numpy as np
from torch import Tensor


class Source(Protocol):
    """An indexed set of labelled images. `labels` is int64 [N]; class names may be empty where the set has none."""

    labels: np.ndarray
    num_classes: int
    class_names: Tuple[str, ...]
    in_memory: bool  # whether an image costs so little that loader processes would only slow it down

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """The decoded image, uint8 [C, height, width], before any augmentation. Raises UserError for a bad file."""
        ...


class Subset:
    """Some samples of a source, in the order of `indices` (int64)."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.labels = source.labels[indices]
        self.num_classes, self.class_names, self.in_memory = source.num_classes, source.class_names, source.in_memory

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Tensor:
        return self._source.image(int(self._indices[index]))


def held_out_indices(labels: np.ndarray, share: float, seed: int) -> Tuple[np.ndarray, np.ndarray]:
    """(training, validation) indices, both rising: share * N samples, rounded up, held out, each class by its proportion.

    The places that rounding leaves go to the classes with the largest remainders.
    """
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * share
    quotas = np.floor(exact).astype(np.int64)
    open_places = math.ceil(len(labels) * share) - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:open_places]] += 1
    chosen = [generator.permutation(np.flatnonzero(labels == c))[:quota] for c, quota in zip(classes, quotas)]
    is_held_out = np.zeros(len(labels), dtype=bool)
    is_held_out[np.concatenate(chosen)] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
