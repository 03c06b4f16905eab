"""Reads host batches and brings them onto the GPU while the steps before them run there."""

from __future__ import annotations

import threading
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Callable

import torch

from batch import HostBatch, HostBatches

Bring = Callable[[HostBatch], HostBatch]
AHEAD = 2  # batches that are ready or under way: one would leave the thread idle while a step takes its batch


def read_ahead(batches: HostBatches, bring: Bring) -> HostBatches:
    """`bring` of each of the batches, in order, called by a thread; what it raises is raised where its batch is due.

    `batches` must not depend on the steps. Its first is read here: loader processes are forked, by the thread that is alone.
    """
    first = next(batches, None)
    if first is None:
        return
    done: SimpleQueue[Any] = SimpleQueue()
    room, is_over = threading.Semaphore(AHEAD), threading.Event()
    thread = threading.Thread(target=_read, args=(batches, bring, done, room, is_over), daemon=True)
    thread.start()
    try:
        yield bring(first)
        while True:
            batch = done.get()
            room.release()
            if isinstance(batch, BaseException):
                raise batch
            if batch is None:
                return
            yield batch
    finally:
        is_over.set()
        room.release()
        thread.join()
        batches.close()


def _read(
    batches: HostBatches, bring: Bring, done: SimpleQueue[Any], room: threading.Semaphore, is_over: threading.Event
) -> None:
    """Body of the thread: puts batches into `done`, and in the end None or what went wrong."""
    try:
        while room.acquire() and not is_over.is_set():
            batch = next(batches, None)
            done.put(None if batch is None else bring(batch))
            if batch is None:
                return
    except BaseException as error:
        done.put(error)


class Uploader:
    """Copies a batch's images to the GPU in a stream of its own, from page-locked memory where `pin_memory` gives it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def __call__(self, batch: HostBatch) -> HostBatch:
        """Waits for the copy: what it gives can be used by any stream, and the host's memory again."""
        with torch.cuda.device(self._device):  # each thread has a current device of its own
            with torch.cuda.stream(self._stream):
                images = None if batch.images is None else batch.images.to(self._device, non_blocking=True)
                mix = None if batch.mix is None else batch.mix.to(self._device, non_blocking=True)
                copied = torch.cuda.Event(
                    blocking=True
                )  # sleeps: polling would take the interpreter's lock again and again
                copied.record()
            copied.synchronize()
            for tensor in (images, mix):
                if tensor is not None:  # the steps compute in the default stream: its memory is not to be reused before
                    tensor.record_stream(torch.cuda.default_stream(self._device))
        return replace(batch, images=images, mix=mix)
