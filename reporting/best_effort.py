"""A listener that may fail without ending the run: a full disk or a lost network must not cost a night of training."""

from __future__ import annotations

from typing import Any, Callable, Optional

from reporting.base import Reporter
from reporting.records import (
    Findings,
    MemoryRecord,
    ModelViews,
    RunRecord,
    SaveRecord,
    StepRecord,
    Summary,
    Timeline,
    ValidationRecord,
)


class BestEffort(Reporter):
    """Passes everything on to what `make` returns. The first exception becomes one note, and the listener is let go."""

    def __init__(self, name: str, make: Callable[[], Reporter], note: Callable[[str], None]) -> None:
        self._name = name
        self._note = note
        self._reporter: Optional[Reporter] = None
        self._reporter = self._attempt(make)

    def began(self, record: RunRecord) -> None:
        self._pass_on("began", record)

    def note(self, text: str) -> None:
        self._pass_on("note", text)

    def step(self, record: StepRecord) -> None:
        self._pass_on("step", record)

    def validating(self, done: int, total: int) -> None:
        self._pass_on("validating", done, total)

    def validated(self, record: ValidationRecord) -> None:
        self._pass_on("validated", record)

    def found(self, findings: Findings) -> None:
        self._pass_on("found", findings)

    def traced(self, timeline: Timeline) -> None:
        self._pass_on("traced", timeline)

    def held(self, record: MemoryRecord) -> None:
        self._pass_on("held", record)

    def viewed(self, views: ModelViews) -> None:
        self._pass_on("viewed", views)

    def saved(self, record: SaveRecord) -> None:
        self._pass_on("saved", record)

    def finished(self, summary: Summary) -> None:
        self._pass_on("finished", summary)

    def close(self) -> None:
        reporter, self._reporter = self._reporter, None
        if reporter is not None:
            self._attempt(reporter.close)

    def _pass_on(self, method: str, *news: Any) -> None:
        if self._reporter is not None:
            self._attempt(getattr(self._reporter, method), *news)

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
