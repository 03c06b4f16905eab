"""Measures one weight update piece by piece, in one process; while it is off, a piece costs next to nothing.

On CPUs by `time.perf_counter`, which all processes of a host share; on GPUs by events in the stream that computes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, ContextManager, Iterator, List, Optional, Tuple

import torch

import machine
from runtime.base import Piece, Trace


class Tracer:
    """`start`, then what is done within `piece`, then `stop`; `trace` gives the pieces."""

    def __init__(self, device: torch.device) -> None:
        self.is_on = False
        self._device = device
        self._marks: List[Tuple[str, int, int, Any, Any]] = []  # kind, part, micro-batch, begin, end
        self._trace: Optional[Trace] = None

    def start(self) -> None:
        """Where processes lie on several hosts, call it in all of them at the same time: their clocks differ."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.is_on, self._trace = True, None
        self._origin, self._first = time.perf_counter(), self._mark()

    def piece(self, kind: str, micro_batch: int = -1, part: int = 0) -> ContextManager[None]:
        """What happens within is a piece of the update."""
        return self._piece(kind, micro_batch, part) if self.is_on else contextlib.nullcontext()

    @contextlib.contextmanager
    def _piece(self, kind: str, micro_batch: int, part: int) -> Iterator[None]:
        begin = self._mark()
        yield
        self._marks.append((kind, part, micro_batch, begin, self._mark()))

    def extend(self) -> None:
        """Counts what has been done since the last piece to it."""
        if self.is_on and self._marks:
            self._marks[-1] = (*self._marks[-1][:4], self._mark())

    def stop(self) -> None:
        """Ends the measurement, after the weight update. Waits for the device."""
        if not self.is_on:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        pieces = [
            Piece(part, kind, micro_batch, self._seconds(begin), self._seconds(end))
            for kind, part, micro_batch, begin, end in self._marks
        ]
        where = f"{socket.gethostname()}, {self._device}" if machine.spans_hosts() else str(self._device)
        self._trace = Trace(machine.host_number(), where, self._origin, pieces)
        self.is_on, self._marks = False, []

    def trace(self) -> Optional[Trace]:
        return self._trace

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, mark: Any) -> float:
        """A mark by this process's clock."""
        if isinstance(mark, float):
            return mark
        return self._origin + self._first.elapsed_time(mark) / 1000
