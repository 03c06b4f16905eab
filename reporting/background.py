"""Calls to a service that may be slow or hang, made by a thread of their own: whoever asks for them does not wait."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Callable, Optional


class Background:
    """Makes calls one after the other, in the order in which they are asked for.

    `call` and `wait` raise what an earlier call has raised, and TimeoutError where one has gone on for `limit_seconds`. The
    thread does not keep the process from ending.
    """

    def __init__(self, service: str, limit_seconds: float) -> None:
        self._service, self._limit_seconds = service, limit_seconds
        self._waiting: queue.Queue[Callable[[], Any]] = queue.Queue()
        self._error: Optional[Exception] = None
        self._begun: Optional[float] = None  # when the call that is being made began
        self._pending = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name=service, daemon=True).start()

    def call(self, action: Callable[[], Any]) -> None:
        """Asks for a call, and returns."""
        with self._changed:
            self._check()
            self._pending += 1
        self._waiting.put(action)

    def wait(self) -> None:
        """Returns when all calls are made."""
        with self._changed:
            self._check()
            while self._pending:
                self._changed.wait(0.1)
                self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._begun is not None and time.monotonic() - self._begun > self._limit_seconds:
            raise TimeoutError(f"{self._service} has not answered for {self._limit_seconds:.0f} s")

    def _work(self) -> None:
        while self._error is None:
            action = self._waiting.get()
            with self._changed:
                self._begun = time.monotonic()
            error: Optional[Exception] = None
            try:
                action()
            except Exception as problem:
                error = problem
            except BaseException as problem:  # one that would end whoever hears of it
                error = RuntimeError(repr(problem))
            with self._changed:
                self._begun, self._error = None, error
                self._pending -= 1
                self._changed.notify_all()
