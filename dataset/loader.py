"""Which sample goes where: host batches for training, exact shares for evaluation.

All of it is a pure function of (seed, epoch, position), whatever the number of processes and loader workers.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Callable, Iterator, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from batch import DataShare, EvalBatch, HostBatch
from dataset.bad_images import Bad, BadImageLog
from dataset.base import Source
from dataset.mixing import Mix, draw_mix
from dataset.order import Order, TrainOrder
from dataset.reading import BatchReader, ReadBatch
from dataset.samples import Samples
from errors import UserError, printable

if TYPE_CHECKING:
    from config import Config

# What the process that reads the images tells those that have the labels: see `base.Runtime.from_first_stage`.
Agree = Callable[[Optional[Tensor], int], Tensor]
MOST_TRIES = 1000  # samples tried in place of one that cannot be read
LEFT_OUT = -1


def _alone(values: Optional[Tensor], size: int) -> Tensor:
    assert values is not None, "one process has images and labels"
    return values


class TrainLoader:
    """One process's share of every host batch.

    An epoch goes through the samples in an order of its own, `samples_per_step` a host step; the `dropped` last ones of that
    order, less than a host step, are left out. Where the policy is to skip bad images, the next readable sample of that order
    stands for each. Raises UserError where there are too few samples for one step.
    """

    def __init__(
        self,
        source: Source,
        config: Config,
        share: DataShare,
        agree: Agree = _alone,
        bad_images: Optional[BadImageLog] = None,
    ) -> None:
        self._order = TrainOrder(len(source), config, share.replicas, source.labels)
        self.steps_per_epoch, self.dropped = self._order.steps_per_epoch, self._order.dropped
        if self.steps_per_epoch < 1:
            raise UserError(_too_few(len(source), config))
        self._config, self._share, self._labels = config, share, source.labels
        self.multi_label = source.labels.ndim == 2
        self._agree, self._bad_images = agree, bad_images or BadImageLog()
        self._own_samples = config.samples_per_step // config.replication_factor * len(share.replicas)
        self._reader: Optional[BatchReader] = None
        if share.images:
            samples = Samples(source, config, augmented=True)
            self._reader = BatchReader(samples, config, self._own_samples, keep_workers=True)
        self._batches: Iterator[ReadBatch] = iter(())
        self._position: Optional[Tuple[int, int]] = None  # (epoch, step) of the next of `_batches`

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[HostBatch]:
        """The host batches of an epoch from `start_step` on, without reading those before."""
        config = self._config
        for step in range(start_step, self.steps_per_epoch):
            read = self._read(self._reader, epoch, step) if self._reader is not None else None
            indices = self._order.step(epoch, step)
            if config.bad_images == "skip":
                indices = self._without_bad_ones(epoch, step, indices, read)
            mix = self._mix(epoch, step) if config.mixup or config.cutmix else None
            yield HostBatch(
                epoch=epoch,
                step=step,
                images=read.images if read is not None else None,
                targets=torch.from_numpy(_labels_of(self._labels, indices)) if self._share.targets else None,
                mix=mix.images if mix is not None else None,
                label_weights=mix.labels if mix is not None else None,
                num_replaced=len(read.bad) if read is not None else 0,
            )

    def _read(self, reader: BatchReader, epoch: int, step: int) -> ReadBatch:
        """The images of a step. Workers read on, into the next epoch; only a jump makes them begin anew."""
        if self._position != (epoch, step):
            self._batches = reader.read(self._order.following(epoch, step))
        self._position = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
        return next(self._batches)

    def _without_bad_ones(self, epoch: int, step: int, indices: np.ndarray, read: Optional[ReadBatch]) -> np.ndarray:
        """The samples of a step as they are in its images, in every process that has a part in them."""
        used = None
        if read is not None:
            used = torch.from_numpy(indices)
            for bad in read.bad:
                self._bad_images.add(bad)
                used[bad.row], read.images[bad.row] = self._stand_in(epoch, step, bad)
        return self._agree(used, len(indices)).numpy()

    def _stand_in(self, epoch: int, step: int, bad: Bad) -> Tuple[int, Tensor]:
        """The next readable sample of the epoch's order, and its image."""
        assert self._reader is not None
        tries = 0
        for index in itertools.islice(self._order.after(epoch, step, bad.row), MOST_TRIES):
            image, failed = self._reader.read_one(epoch, index)
            if not failed:
                return index, image[0]
            tries += 1
        raise UserError(
            f"cannot read image {printable(bad.where)}: {bad.reason}; nor {tries:,} others after it.\n"
            "       Look at the data set with verify.py."
        )

    def _mix(self, epoch: int, step: int) -> Mix:
        """How the own images of a step are mixed, by the number of each update since the run began."""
        first = (epoch * self.steps_per_epoch + step) * self._config.device_iterations
        updates = range(first, first + self._config.device_iterations)
        parts = [draw_mix(self._config, update, self._share.replicas) for update in updates]
        return Mix(*(torch.cat(columns) for columns in zip(*parts)))


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
        agree: Agree = _alone,
        bad_images: Optional[BadImageLog] = None,
    ) -> None:
        if len(source) < 1:
            raise UserError(f"dataset = {config.dataset} has no validation images.")
        self.source, self.config, self.num_labels = source, config, config.num_labels
        self.multi_label = source.labels.ndim == 2
        self._indices = range(share_index, len(source), num_shares)
        self._batch_size, self._has_targets, self._labels = batch_size, targets, source.labels
        self._agree = agree if config.bad_images == "skip" else None
        self._bad_images = bad_images or BadImageLog()
        self._num_batches = -(-len(source) // (num_shares * batch_size))
        self._reader: Optional[BatchReader] = None
        if images:
            self._reader = BatchReader(Samples(source, config, augmented=False), config, batch_size, keep_workers=False)

    def __len__(self) -> int:
        """Number of batches."""
        return self._num_batches

    def __iter__(self) -> Iterator[EvalBatch]:
        orders = (Order(None, self._batch_indices(number)) for number in range(self._num_batches))
        batches = self._reader.read(orders) if self._reader else None
        for number in range(self._num_batches):
            indices = self._batch_indices(number)
            read = next(batches) if batches is not None else None
            yield EvalBatch(
                num_valid=len(indices),
                rows=self._rows(indices, read),
                indices=torch.from_numpy(indices),
                images=read.images if read is not None else None,
                targets=self._targets(indices) if self._has_targets else None,
            )

    def _batch_indices(self, number: int) -> np.ndarray:
        part = self._indices[number * self._batch_size : (number + 1) * self._batch_size]
        return np.arange(part.start, part.stop, part.step)

    def _rows(self, indices: np.ndarray, read: Optional[ReadBatch]) -> Tensor:
        """The rows that count, in every process that has a part in the batch."""
        rows = torch.arange(len(indices))
        if self._agree is None:
            return rows
        if read is not None:
            for bad in read.bad:
                self._bad_images.add(bad)
                rows[bad.row] = LEFT_OUT
        rows = self._agree(rows if read is not None else None, len(indices))
        return rows[rows != LEFT_OUT]

    def _targets(self, indices: np.ndarray) -> Tensor:
        labels = _labels_of(self._labels, indices)
        targets = np.zeros((self._batch_size, *labels.shape[1:]), dtype=labels.dtype)
        targets[: len(indices)] = labels
        return torch.from_numpy(targets)


def _labels_of(labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """int64 [n], or uint8 [n, K] where images have several labels."""
    return labels[indices].astype(np.int64 if labels.ndim == 1 else np.uint8)


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
