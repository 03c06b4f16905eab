"""Ctrl-C and SIGTERM as a wish: the step in work ends, and the run is saved."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any, Dict, Optional

SAME_SIGNAL_SECONDS = 1.0


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a wish to stop after the current step; a second SIGINT ends at once.

    Schedulers send a signal to every process, and launchers pass theirs on: one that follows within a second is the same.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at = 0.0
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if not self.number:
            self.number, self._at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt
