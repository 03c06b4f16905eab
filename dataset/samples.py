"""From sample numbers to pixels: read, decode, bring to the config's channels, transform."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, List, Optional, Tuple

import torch
from torch import Tensor

from dataset.bad_images import Bad
from dataset.base import BadImageError, Source
from dataset.decode import open_picture
from dataset.order import Order
from dataset.transforms.augment import EvalTransform, TrainTransform
from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config


AT_ONCE = 64  # images transformed together: enough to spread the cost of a call, few enough for the cache


class Samples:
    """Images as the model gets them, uint8 [C, image_size, image_size].

    Training images are a function of (seed, epoch, index, copy), evaluation images, of epoch None, of the index.
    """

    def __init__(self, source: Source, config: Config, augmented: bool) -> None:
        self.source = source
        self.shape = (config.num_channels, config.image_size, config.image_size)
        self._seed = config.random_seed
        self._max_pixels = config.max_image_pixels
        self._train_transform = TrainTransform(config) if augmented and not source.is_ready else None
        self._eval_transform = EvalTransform(config)

    def empty(self, count: int, pinned: bool = False) -> Tensor:
        """Room for images, uint8 [count, *shape]. Colours lie last in memory, as decoders write and resizing reads them."""
        colours_last = self.shape[0] == 3 and not self.source.is_ready
        layout = torch.channels_last if colours_last else torch.contiguous_format
        return torch.empty((count, *self.shape), dtype=torch.uint8, memory_format=layout, pin_memory=pinned)

    def write(self, rows: Tensor, order: Order) -> List[Bad]:
        """Writes the n images of `order` into the first n of `rows` [n or more, *shape]; zeros for those returned."""
        if self.source.is_ready:  # straight there, without a batch in between
            for row, index in zip(rows, order.indices.tolist()):
                row.copy_(self.source.item(index))  # type: ignore[arg-type]  # ready ones are decoded
            return []
        found: List[Bad] = []
        for begin in range(0, len(order.indices), AT_ONCE):
            images, bad = self.read(order.rows(begin, begin + AT_ONCE))
            rows[begin : begin + len(images)] = images
            found += [one._replace(row=begin + one.row) for one in bad]
        return found

    def read(self, order: Order) -> Tuple[Tensor, List[Bad]]:
        """The n images of `order`, [n, *shape], n at least 1; zeros for those that cannot be read."""
        images = self.empty(len(order.indices))
        if self.source.is_ready:
            return images, self.write(images, order)
        indices = order.indices.tolist()
        copies = [0] * len(indices) if order.copies is None else order.copies.tolist()
        draws = [random.Random(self._seed_of(order.epoch, *drawn)) for drawn in zip(indices, copies)]
        bad: List[Bad] = []
        for row, index in enumerate(indices):
            try:
                images[row] = self._one(index, draws[row])
            except BadImageError as error:
                bad.append(Bad(row, error.where, error.reason))
                images[row] = 0
        if self._train_transform is not None:
            images = self._train_transform.finish(images, draws)
            images[[one.row for one in bad]] = 0
        return images, bad

    def _one(self, index: int, draw: random.Random) -> Tensor:
        picture = open_picture(self.source.item(index), self.shape[0], self._max_pixels)
        if self._train_transform is None:
            return self._eval_transform.cut(picture)
        return self._train_transform.cut(picture, draw)

    def _seed_of(self, epoch: Optional[int], index: int, copy: int) -> int:
        if epoch is None:
            return 0
        return derive_seed(self._seed, "augment", epoch, index, *([copy] if copy else []))
