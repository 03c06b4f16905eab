"""Random pixels with random labels, to measure everything but the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Tuple

import numpy as np
import torch
from torch import Tensor

from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config

NUM_OFFSETS = 1 << 22
FEW = 64


class Generated:
    """Images and labels that are functions of (seed, split, index), with all labels in turn, shuffled.

    An image is a window of one buffer of random bytes at a random offset: drawing it costs as much as copying it, so that
    the loader never limits what is measured.
    """

    class_names: Tuple[str, ...] = ()
    is_cheap = True
    is_ready = True
    notes: Tuple[str, ...] = ()

    def __init__(self, config: Config, split: str, num_samples: int) -> None:
        self.num_classes = config.num_labels
        self._key = (config.random_seed, "generated", split)
        self._shape = (config.num_channels, config.image_size, config.image_size)
        generator = np.random.default_rng(derive_seed(*self._key))
        self.labels = generator.permutation(np.arange(num_samples, dtype=np.int64) % config.num_labels)
        num_bytes = NUM_OFFSETS + int(np.prod(self._shape))
        self._bytes = torch.from_numpy(generator.integers(0, 256, num_bytes, dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Tensor:
        offset = derive_seed(*self._key, index) % NUM_OFFSETS
        return self._bytes[offset : offset + int(np.prod(self._shape))].view(self._shape)


def open_generated(config: Config, split: str) -> Generated:
    """`iterations` host steps to train on, or to validate where that is the command; else a few images to validate."""
    num_samples = config.samples_per_step * config.iterations
    if split == "validation" and config.trains:
        num_samples = min(config.samples_per_step, FEW)  # nothing to learn there, and it comes after every epoch
    return Generated(config, split, num_samples)
