"""Which sample goes where: host batches for training, exact shares for evaluation.

All of it is a pure function of (seed, epoch, position), whatever the number of processes and loader workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from batch import DataShare, EvalBatch, HostBatch
from dataset.base import Source
from dataset.mixup import draw_lambda
from dataset.order import Order, TrainOrder
from dataset.reading import BatchReader
from dataset.samples import Samples
from errors import UserError

if TYPE_CHECKING:
    from config import Config


class TrainLoader:
    """One process's share of every host batch.

    An epoch goes through the samples in an order of its own, `samples_per_step` a host step; the `dropped` last ones of that
    order, less than a host step, are left out. Raises UserError where there are too few for one.
    """

    def __init__(self, source: Source, config: Config, share: DataShare) -> None:
        self._order = TrainOrder(len(source), config, share.replicas)
        self.steps_per_epoch, self.dropped = self._order.steps_per_epoch, self._order.dropped
        if self.steps_per_epoch < 1:
            raise UserError(_too_few(len(source), config))
        self._config, self._share, self._labels = config, share, source.labels
        self._reader: Optional[BatchReader] = None
        if share.images:
            own_samples = config.samples_per_step // config.replication_factor * len(share.replicas)
            self._reader = BatchReader(Samples(source, config, augmented=True), config, own_samples, keep_workers=True)
        self._images: Iterator[Tensor] = iter(())
        self._position: Optional[Tuple[int, int]] = None  # (epoch, step) of the next of `_images`

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[HostBatch]:
        """The host batches of an epoch from `start_step` on, without reading those before."""
        for step in range(start_step, self.steps_per_epoch):
            yield HostBatch(
                epoch=epoch,
                step=step,
                images=self._read(self._reader, epoch, step) if self._reader is not None else None,
                targets=self._targets(epoch, step) if self._share.targets else None,
                mixup_lambda=self._mixup_lambda(epoch, step) if self._config.mixup else None,
            )

    def _read(self, reader: BatchReader, epoch: int, step: int) -> Tensor:
        """The images of a step. Workers read on, into the next epoch; only a jump makes them begin anew."""
        if self._position != (epoch, step):
            self._images = reader.read(self._order.following(epoch, step))
        self._position = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
        return next(self._images)

    def _targets(self, epoch: int, step: int) -> Tensor:
        return torch.from_numpy(self._labels[self._order.step(epoch, step)])

    def _mixup_lambda(self, epoch: int, step: int) -> Tensor:
        """float32 [device_iterations]: one weight an update, by the update's number since the run began."""
        config = self._config
        assert config.alpha is not None, "the config checks it"
        first = (epoch * self.steps_per_epoch + step) * config.device_iterations
        updates = range(first, first + config.device_iterations)
        return torch.tensor([draw_lambda(config.random_seed, update, config.alpha) for update in updates])


class EvalLoader:
    """Every sample once over all shares: share i of n takes the samples i, i + n, i + 2 n, ...

    All shares yield the same number of batches, all of `batch_size` rows; what is missing at the end is padded with zeros.
    """

    def __init__(
        self,
        source: Source,
        config: Config,
        *,
        batch_size: int,
        share_index: int,
        num_shares: int,
        images: bool,
        targets: bool,
    ) -> None:
        if len(source) < 1:
            raise UserError(f"dataset = {config.dataset} has no validation images.")
        self._indices = np.arange(share_index, len(source), num_shares)
        self._batch_size, self._has_targets, self._labels = batch_size, targets, source.labels
        self._num_batches = -(-len(source) // (num_shares * batch_size))
        self._reader: Optional[BatchReader] = None
        if images:
            self._reader = BatchReader(Samples(source, config, augmented=False), config, batch_size, keep_workers=False)

    def __len__(self) -> int:
        """Number of batches."""
        return self._num_batches

    def __iter__(self) -> Iterator[EvalBatch]:
        batches = [self._batch_indices(number) for number in range(self._num_batches)]
        images = self._reader.read(Order(None, indices) for indices in batches) if self._reader else None
        for indices in batches:
            yield EvalBatch(
                num_valid=len(indices),
                images=next(images) if images is not None else None,
                targets=self._targets(indices) if self._has_targets else None,
            )

    def _batch_indices(self, number: int) -> np.ndarray:
        return self._indices[number * self._batch_size : (number + 1) * self._batch_size]

    def _targets(self, indices: np.ndarray) -> Tensor:
        targets = torch.zeros(self._batch_size, dtype=torch.int64)
        targets[: len(indices)] = torch.from_numpy(self._labels[indices])
        return targets


def _too_few(num_samples: int, config: Config) -> str:
    factors = ("micro_batch_size", "gradient_accumulation", "replication_factor", "device_iterations")
    product = " x ".join(f"{name} {getattr(config, name)}" for name in factors)
    micro_batch = max(1, min(config.micro_batch_size, num_samples // 2))
    flags = f"--micro-batch-size {micro_batch} --gradient-accumulation 1"
    for name in ("replication_factor", "device_iterations"):
        flags += f" --{name.replace('_', '-')} 1" if getattr(config, name) > 1 else ""
    return (
        f"the training set has {num_samples:,} images, but one host step takes {config.samples_per_step:,}: {product}.\n"
        f"       Lower these until their product is no larger than the set, e.g. {flags}"
    )
