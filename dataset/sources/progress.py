"""One line now and then about work that takes long before a run can begin."""

from __future__ import annotations

import sys
import time

import machine

EVERY_SECONDS = 5.0


class LongWork:
    """Counts what is done; says so on the error stream from the fifth second on, in one process of a machine."""

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit, self._count = what, unit, 0
        self._next = time.monotonic() + EVERY_SECONDS
        self._shown = machine.local_rank() == 0

    def add(self, count: int) -> None:
        """May be called from several threads: a line more or less does no harm."""
        self._count += count
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_SECONDS
            print(f"{self._what}: {self._count:,} {self._unit} so far", file=sys.stderr, flush=True)
