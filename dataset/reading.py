"""Batches of images, read here or by loader processes, with the same result."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import machine
from dataset.order import Order
from dataset.samples import AT_ONCE, Samples
from errors import UserError

if TYPE_CHECKING:
    from config import Config

MOST_CHUNKS_AHEAD = 256  # each holds a file descriptor and shared memory: 2.5 GB of 224-pixel images at most
SHARED_MEMORY = "/dev/shm"
SHARE_OF_SHARED_MEMORY = 0.25  # of what is free, for there may be other loaders


class BatchReader:
    """Reads orders of up to `batch_size` samples into batches of exactly that many rows, the rest zeros.

    Loader processes are started by the first read. With `keep_workers` they stay for the next, else they end with the read.
    What holds a reader must not be held by its orders: in a cycle, torch gets to end its processes only after 5 s each.
    """

    def __init__(self, samples: Samples, config: Config, batch_size: int, keep_workers: bool) -> None:
        self._samples, self._batch_size = samples, batch_size
        self._pinned = config.pin_memory and machine.num_gpus(config.device) > 0
        self._tasks = _Tasks(1)
        self._loader: Optional[DataLoader[Any]] = None
        num_workers = 0 if samples.source.is_cheap else min(config.dataloader_workers, machine.num_cores())
        if num_workers:
            image_bytes = int(np.prod(samples.shape))
            sizes = plan_chunks(num_workers, batch_size, image_bytes, config.prefetch_batches, free_shared_memory())
            self._tasks = _Tasks(sizes.rows)
            self._loader = DataLoader(
                _Chunks(samples),
                batch_size=None,
                sampler=self._tasks,
                num_workers=num_workers,
                collate_fn=_unchanged,  # type: ignore[arg-type]  # declared for lists
                worker_init_fn=_leave_signals_to_the_main_process,
                prefetch_factor=sizes.ahead,
                persistent_workers=keep_workers,
                generator=torch.Generator(),  # else it would draw its seed from the default one
            )

    def read(self, orders: Iterable[Order]) -> Iterator[Tensor]:
        """uint8 [batch_size, C, image_size, image_size] of each order. Ends the read before it. Raises UserError."""
        if self._loader is None:
            for epoch, indices in orders:
                rows = self._empty_batch(len(indices))
                self._samples.write(rows, epoch, indices)
                yield rows
            return
        self._tasks.orders = orders
        chunks = iter(self._loader)
        for first in chunks:
            batch, error = self._assemble(first, chunks)
            if error is not None:
                # Workers end here: an exception keeps alive, by its traceback, what would end them.
                self._loader = None
                del chunks
                raise UserError(error)
            yield batch

    def _assemble(self, first: _Chunk, more: Iterator[_Chunk]) -> Tuple[Tensor, Optional[str]]:
        """A batch from its chunks, or the error of one of them."""
        rows, begin = self._empty_batch(0), 0
        for chunk in itertools.chain((first,), more):
            if chunk.images is not None:
                rows[begin : begin + len(chunk.images)] = chunk.images
                begin += len(chunk.images)
            if chunk.is_last or chunk.error is not None:
                return rows, chunk.error
        raise AssertionError("tasks end with a last chunk")

    def _empty_batch(self, num_valid: int) -> Tensor:
        rows = torch.empty((self._batch_size, *self._samples.shape), dtype=torch.uint8, pin_memory=self._pinned)
        rows[num_valid:] = 0
        return rows


@dataclass(frozen=True)
class ChunkSizes:
    """`rows` images a chunk; each worker prepares `ahead` chunks ahead."""

    rows: int
    ahead: int


def plan_chunks(workers: int, batch_size: int, image_bytes: int, batches_ahead: int, free_bytes: float) -> ChunkSizes:
    """Chunks that let all workers share a batch, and keep `batches_ahead` batches ready as far as shared memory allows."""
    allowed = max(1, int(free_bytes * SHARE_OF_SHARED_MEMORY / image_bytes))
    rows = max(1, min(AT_ONCE, -(-batch_size // workers), allowed // (2 * workers)))
    wanted = batches_ahead * -(-batch_size // rows)
    ahead = min(wanted, MOST_CHUNKS_AHEAD, allowed // rows)
    return ChunkSizes(rows, max(1, -(-ahead // workers)))


def free_shared_memory() -> float:
    """Bytes that loader processes may hand over images in."""
    return shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else float("inf")


class _Task(NamedTuple):
    order: Order
    is_last: bool


class _Chunk(NamedTuple):
    images: Optional[Tensor]
    error: Optional[str]
    is_last: bool


class _Tasks:
    """Orders cut into tasks of a few rows; the sampler of the DataLoader."""

    def __init__(self, rows: int) -> None:
        self.orders: Iterable[Order] = ()
        self._rows = rows

    def __iter__(self) -> Iterator[_Task]:
        for epoch, indices in self.orders:
            begins = range(0, max(1, len(indices)), self._rows)
            for begin in begins:
                part = indices[begin : begin + self._rows]
                yield _Task(Order(epoch, part), is_last=begin == begins[-1])


class _Chunks(torch.utils.data.Dataset):
    """Tasks to chunks, in a loader process."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, task: _Task) -> _Chunk:
        try:
            images = self._samples.read(*task.order) if len(task.order.indices) else None
            return _Chunk(images, None, task.is_last)
        except UserError as error:
            # As a value: raised, torch would bury the message in its own text and traceback.
            return _Chunk(None, str(error), task.is_last)


def _unchanged(chunk: _Chunk) -> _Chunk:
    return chunk


def _leave_signals_to_the_main_process(worker: int) -> None:
    # Ctrl-C, and `timeout`'s SIGTERM, go to the whole process group; a step that is under way still needs its images.
    os.setpgid(0, 0)
