"""Host batches as pure functions of (seed, epoch, position): any process, with any number of workers, can make its share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from batch import DataShare, EvalBatch, HostBatch
from dataset.base import Source
from dataset.mixup import draw_lambda
from errors import UserError
from machine import num_cores
from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config

CHUNK_SIZE = 16  # images that a loader worker prepares at a time: a host batch is shared out over all workers


class TrainLoader:
    """The training batches of one process.

    An epoch is a permutation drawn from (seed, epoch), cut into host steps of `samples_per_step`; `dropped` samples at its
    end are left out, others each time. Raises UserError where the set is smaller than one host step.
    """

    def __init__(self, source: Source, config: Config, share: DataShare) -> None:
        self._source, self._config, self._share = source, config, share
        self.steps_per_epoch, self.dropped = divmod(len(source), config.samples_per_step)
        if self.steps_per_epoch < 1:
            raise UserError(
                f"the training set has {len(source):,} images, one host step takes {config.samples_per_step:,} "
                f"(micro_batch_size {config.micro_batch_size} x gradient_accumulation {config.gradient_accumulation} x "
                f"replication_factor {config.replication_factor} x device_iterations {config.device_iterations}).\n"
                "       Lower one of them."
            )
        self._images = _ImageReader(source, config) if share.images else None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[HostBatch]:
        """The host batches of an epoch from `start_step` on; nothing before it is read."""
        order = np.random.default_rng(derive_seed(self._config.random_seed, "order", epoch)).permutation(
            len(self._source)
        )
        rows = [self._own_rows(order, step) for step in range(start_step, self.steps_per_epoch)]
        keys = [[(int(index), epoch) for index in own] for own in rows]
        images = self._images.batches(keys) if self._images is not None else iter([None] * len(rows))
        for step, own, pixels in zip(range(start_step, self.steps_per_epoch), rows, images):
            targets = torch.from_numpy(self._source.labels[own]) if self._share.targets else None
            yield HostBatch(epoch, step, pixels, targets, self._mixup_lambda(epoch, step))

    def _own_rows(self, order: np.ndarray, step: int) -> np.ndarray:
        """This share's samples of a host step, in the layout [device iteration][accumulation][own replica][micro]."""
        size = self._config.samples_per_step
        samples = order[step * size : (step + 1) * size]
        by_replica = samples.reshape(-1, self._config.replication_factor, self._config.micro_batch_size)
        return by_replica[:, list(self._share.replicas)].reshape(-1)

    def _mixup_lambda(self, epoch: int, step: int) -> Optional[Tensor]:
        config = self._config
        if not config.mixup:
            return None
        assert config.alpha is not None, "checked where the config is read"
        first = (epoch * self.steps_per_epoch + step) * config.device_iterations
        updates = range(first, first + config.device_iterations)
        return torch.tensor([draw_lambda(config.random_seed, update, config.alpha) for update in updates])


class EvalLoader:
    """One process's share of a validation set: sample i, i + num_shares, …; every sample exactly once over all shares.

    All shares have the same number of batches of `batch_size`; what is missing at the end is zeros that do not count.
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
        self._source, self._batch_size, self._wants_targets = source, batch_size, targets
        self._own = np.arange(share_index, len(source), num_shares)
        self.num_batches = math.ceil(math.ceil(len(source) / num_shares) / batch_size)
        self._images = _ImageReader(source, config, trains=False) if images else None

    def __iter__(self) -> Iterator[EvalBatch]:
        size = self._batch_size
        rows = [self._own[number * size : (number + 1) * size] for number in range(self.num_batches)]
        keys = [[(int(index), 0) for index in own] for own in rows]
        images = self._images.batches(keys) if self._images is not None else iter([None] * len(rows))
        for own, pixels in zip(rows, images):
            targets = torch.from_numpy(self._source.labels[own]) if self._wants_targets else None
            yield EvalBatch(len(own), _padded(pixels, size), _padded(targets, size))


def _padded(tensor: Optional[Tensor], size: int) -> Optional[Tensor]:
    if tensor is None or len(tensor) == size:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((size - len(tensor), *tensor.shape[1:]))])


class _ImageReader:
    """Reads and transforms lists of (index, epoch) into uint8 batches, in this process or in worker processes."""

    def __init__(self, source: Source, config: Config, trains: bool = True) -> None:
        self._config = config
        self._workers = 0 if source.in_memory else min(config.dataloader_workers, num_cores())
        self._shape = (config.num_channels, config.image_size, config.image_size)
        dataset = _Samples(source, config, trains)
        self._dataset = dataset
        self._chunks = _Chunks()
        self._loader = self._build_loader() if self._workers else None

    def _build_loader(self) -> Any:
        return DataLoader(
            self._dataset,
            batch_sampler=self._chunks,
            num_workers=self._workers,
            collate_fn=_as_is,
            persistent_workers=True,
            prefetch_factor=self._prefetch_factor(),
            worker_init_fn=_start_worker,
        )

    def _prefetch_factor(self) -> int:
        """Chunks that each worker prepares ahead: its part of `prefetch_batches` micro-batch groups, bounded in memory."""
        images = self._config.prefetch_batches * self._config.samples_per_step
        return max(2, min(64, -(-images // (CHUNK_SIZE * self._workers))))

    def batches(self, keys: Sequence[List[Tuple[int, int]]]) -> Iterator[Tensor]:
        """One tensor [len(batch), C, H, W] for each list of keys."""
        if self._loader is None:
            for batch in keys:
                yield _copied(self._dataset.__getitems__(batch), self._empty(len(batch)))
            return
        self._chunks.chunks = [batch[i : i + CHUNK_SIZE] for batch in keys for i in range(0, len(batch), CHUNK_SIZE)]
        chunks = iter(self._loader)
        for batch in keys:
            out = self._empty(len(batch))
            for start in range(0, len(batch), CHUNK_SIZE):
                result = next(chunks)
                if isinstance(result, UserError):
                    raise result
                out[start : start + len(result)] = result
            yield out

    def _empty(self, count: int) -> Tensor:
        pinned = self._config.pin_memory and self._config.device != "cpu" and torch.cuda.is_available()
        return torch.empty((count, *self._shape), dtype=torch.uint8, pin_memory=pinned)


class _Chunks:
    """The batch sampler of the moment: workers live as long as the loader, the list changes with every epoch."""

    def __init__(self) -> None:
        self.chunks: List[List[Tuple[int, int]]] = []

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


class _Samples(Dataset):
    """Map from (index, epoch) to a transformed image; transforms are built in the process that uses them."""

    def __init__(self, source: Source, config: Config, trains: bool) -> None:
        self._source, self._config, self._trains = source, config, trains
        self._transform: Any = None

    def __getitems__(self, keys: List[Tuple[int, int]]) -> Any:
        """uint8 [len(keys), C, H, W], or the UserError that one of them raised: as a value, so that workers keep it whole."""
        try:
            return self._load(keys) if keys else []
        except UserError as error:
            return error

    def _load(self, keys: List[Tuple[int, int]]) -> Tensor:
        images = [self._source.image(index) for index, _ in keys]
        if not self._trains:
            return self._eval_transform()(images)
        seed = self._config.random_seed
        return self._train_transform()(images, [derive_seed(seed, "augment", epoch, index) for index, epoch in keys])

    def _train_transform(self) -> Any:
        if self._transform is None:
            from dataset.augment import TrainTransform

            self._transform = TrainTransform(self._config)
        return self._transform

    def _eval_transform(self) -> Any:
        if self._transform is None:
            from dataset.augment import EvalTransform

            self._transform = EvalTransform(self._config)
        return self._transform


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)


def _copied(result: Any, out: Tensor) -> Tensor:
    if isinstance(result, UserError):
        raise result
    return out.copy_(result) if len(out) else out
