"""Who listens to a run: a reporter hears its records."""

from __future__ import annotations

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


class Reporter:
    """Hears what happens in a run. A subclass overrides what it wants to hear; the rest passes unheard.

    Only the main process of a run has reporters. `close` may be called more than once, also after an exception.
    """

    def began(self, record: RunRecord) -> None:
        """A run is put together, and its first step comes next."""

    def note(self, text: str) -> None:
        """Something that the user should read once."""

    def step(self, record: StepRecord) -> None:
        """A host step has ended."""

    def validating(self, done: int, total: int) -> None:
        """A validation pass has come to the end of batch `done` of `total`."""

    def validated(self, record: ValidationRecord) -> None:
        """A validation pass has ended."""

    def found(self, findings: Findings) -> None:
        """What that pass shows beyond its scores."""

    def traced(self, timeline: Timeline) -> None:
        """A step was measured piece by piece."""

    def held(self, record: MemoryRecord) -> None:
        """How much memory processes have held."""

    def viewed(self, views: ModelViews) -> None:
        """Pictures were made of what the model does."""

    def saved(self, record: SaveRecord) -> None:
        """A step has come onto the disk, perhaps some steps after it was made."""

    def finished(self, summary: Summary) -> None:
        """The run has ended in order: all steps done, or stopped early on request."""

    def close(self) -> None:
        """Nothing more will come: write out what is pending."""
