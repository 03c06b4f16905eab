"""Random images that cost nothing to make: for measuring speed and for trying configs without their data."""

from __future__ import annotations

from typing import Tuple

import numpy as np
import torch
from torch import Tensor

from seeding import derive_seed

NUM_PATTERNS = 64  # different noise images; each sample is one of them, shifted by its own amount


class Generated:
    """`length` images of uniformly random bytes, [channels, side, side], labels over all classes; a function of the seed."""

    class_names: Tuple[str, ...] = ()
    in_memory = True

    def __init__(self, length: int, side: int, channels: int, num_classes: int, seed: int) -> None:
        self.num_classes = num_classes
        self._length = length
        generator = torch.Generator().manual_seed(derive_seed(seed, "generated"))
        count = min(length, NUM_PATTERNS)
        self._patterns = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
        # Every class comes up before one comes twice.
        self.labels = (
            np.random.default_rng(derive_seed(seed, "labels")).permutation(length).astype(np.int64) % num_classes
        )

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> Tensor:
        turn, pattern = divmod(index, len(self._patterns))
        return self._patterns[pattern].roll(turn, dims=-1) if turn else self._patterns[pattern]
