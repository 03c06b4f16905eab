"""From sample numbers to pixels: read, bring to the config's channels, transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import numpy as np
import torch
from torch import Tensor

from dataset.augment import EvalTransform, TrainTransform
from dataset.base import Source
from dataset.decode import to_channels
from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config


AT_ONCE = 64  # images transformed together: enough to spread the cost of a call, few enough for the cache


class Samples:
    """Images as the model gets them, uint8 [C, image_size, image_size].

    Training images are a function of (seed, epoch, index), evaluation images, of epoch None, of the index.
    """

    def __init__(self, source: Source, config: Config, augmented: bool) -> None:
        self.source = source
        self.shape = (config.num_channels, config.image_size, config.image_size)
        self._seed = config.random_seed
        self._train_transform = TrainTransform(config) if augmented and not source.is_ready else None
        self._eval_transform = EvalTransform(config)

    def write(self, rows: Tensor, epoch: Optional[int], indices: np.ndarray) -> None:
        """Writes the images of `indices` [n] into the first n of `rows` [n or more, *shape]."""
        if self.source.is_ready:  # straight there, without a batch in between
            for row, index in zip(rows, indices.tolist()):
                row.copy_(self.source.image(index))
            return
        for begin in range(0, len(indices), AT_ONCE):
            part = indices[begin : begin + AT_ONCE]
            rows[begin : begin + len(part)] = self.read(epoch, part)

    def read(self, epoch: Optional[int], indices: np.ndarray) -> Tensor:
        """The images of `indices` [n], [n, *shape], n at least 1."""
        images = [self.source.image(index) for index in indices.tolist()]
        if self.source.is_ready:
            return torch.stack(images)
        images = [to_channels(image, self.shape[0]) for image in images]
        if self._train_transform is None:
            return self._eval_transform(images)
        assert epoch is not None, "augmentation depends on the epoch"
        return self._train_transform(images, [self._seed_of(epoch, index) for index in indices.tolist()])

    def _seed_of(self, epoch: int, index: int) -> int:
        return derive_seed(self._seed, "augment", epoch, index)
