"""Batches of images, read here or by loader processes, with the same result."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable, Iterator, List, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import machine
from dataset.bad_images import Bad
from dataset.order import Order
from dataset.samples import AT_ONCE, Samples

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
        self._stops = config.bad_images == "stop"
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
                # In a process that was itself started by a server, torch would start these so too: 2 s each, with copies of all
                # that the source holds.
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                worker_init_fn=_prepare_worker,
                prefetch_factor=sizes.ahead,
                persistent_workers=keep_workers,
                generator=torch.Generator(),  # else it would draw its seed from the default one
            )

    def read(self, orders: Iterable[Order]) -> Iterator[ReadBatch]:
        """The batch of each order. Ends the read before it. Raises UserError for a bad image where the policy is to stop."""
        if self._loader is None:
            for order in orders:
                rows = self._empty_batch(len(order.indices))
                bad = self._samples.write(rows, order)
                if bad and self._stops:
                    raise bad[0].as_error()
                yield ReadBatch(rows, bad)
            return
        self._tasks.orders = orders
        chunks = iter(self._loader)
        for first in chunks:
            batch = self._assemble(first, chunks)
            if batch.bad and self._stops:
                # Workers end here: an exception keeps alive, by its traceback, what would end them.
                self._loader = None
                del chunks
                raise batch.bad[0].as_error()
            yield batch

    def read_one(self, epoch: int, index: int) -> ReadBatch:
        """One image, read in this process: a batch of one row."""
        return ReadBatch(*self._samples.read(Order(epoch, np.array([index]))))

    def _assemble(self, first: _Chunk, more: Iterator[_Chunk]) -> ReadBatch:
        """A batch from its chunks, or those up to the first bad image where the policy is to stop."""
        rows, begin, bad = self._empty_batch(0), 0, []
        for chunk in itertools.chain((first,), more):
            bad += [one._replace(row=begin + one.row) for one in chunk.bad]
            if chunk.images is not None:
                rows[begin : begin + len(chunk.images)] = chunk.images
                begin += len(chunk.images)
            if chunk.is_last or (bad and self._stops):
                return ReadBatch(rows, bad)
        raise AssertionError("tasks end with a last chunk")

    def _empty_batch(self, num_valid: int) -> Tensor:
        rows = self._samples.empty(self._batch_size, self._pinned)
        rows[num_valid:] = 0
        return rows


class ReadBatch(NamedTuple):
    """uint8 [batch_size, C, image_size, image_size], and which of its rows could not be read."""

    images: Tensor
    bad: List[Bad]


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
    bad: List[Bad]
    is_last: bool


class _Tasks:
    """Orders cut into tasks of a few rows; the sampler of the DataLoader."""

    def __init__(self, rows: int) -> None:
        self.orders: Iterable[Order] = ()
        self._rows = rows

    def __iter__(self) -> Iterator[_Task]:
        for order in self.orders:
            begins = range(0, max(1, len(order.indices)), self._rows)
            for begin in begins:
                yield _Task(order.rows(begin, begin + self._rows), is_last=begin == begins[-1])


class _Chunks(torch.utils.data.Dataset):
    """Tasks to chunks, in a loader process."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, task: _Task) -> _Chunk:
        if not len(task.order.indices):
            return _Chunk(None, [], task.is_last)
        return _Chunk(*self._samples.read(task.order), task.is_last)


def _unchanged(chunk: _Chunk) -> _Chunk:
    return chunk


def _prepare_worker(worker: int) -> None:
    machine.keep_freed_memory()  # decoding and resizing allocate as much for every image
    # Ctrl-C, and `timeout`'s SIGTERM, go to the whole process group; a step that is under way still needs its images.
    os.setpgid(0, 0)
