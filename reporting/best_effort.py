"""A listener that may fail without ending the run: a full disk or a lost network must not cost a night of training."""

from __future__ import annotations

from typing import Any, Callable, Optional

from reporting.base import Reporter, SaveRecord, StepRecord, Summary, ValidationRecord


class BestEffort(Reporter):
    """Passes everything on to what `make` returns. The first exception becomes one note, and the listener is let go."""

    def __init__(self, name: str, make: Callable[[], Reporter], note: Callable[[str], None]) -> None:
        self._name = name
        self._note = note
        self._reporter: Optional[Reporter] = None
        self._reporter = self._attempt(make)

    def note(self, text: str) -> None:
        if self._reporter is not None:
            self._attempt(self._reporter.note, text)

    def step(self, record: StepRecord) -> None:
        if self._reporter is not None:
            self._attempt(self._reporter.step, record)

    def validated(self, record: ValidationRecord) -> None:
        if self._reporter is not None:
            self._attempt(self._reporter.validated, record)

    def saved(self, record: SaveRecord) -> None:
        if self._reporter is not None:
            self._attempt(self._reporter.saved, record)

    def finished(self, summary: Summary) -> None:
        if self._reporter is not None:
            self._attempt(self._reporter.finished, summary)

    def close(self) -> None:
        reporter, self._reporter = self._reporter, None
        if reporter is not None:
            self._attempt(reporter.close)

    def _attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except ImportError as error:
            self._give_up(f"{error}. Install the package to have it")
        except Exception as error:  # the listener's failure, whatever it is, is not the run's
            self._give_up(f"{type(error).__name__}: {error}")
        return None

    def _give_up(self, reason: str) -> None:
        self._reporter = None
        self._note(f"note: no {self._name} from here on: {reason.rstrip('.')}. The run goes on without it.")
