"""report.html: the page that shows how a run goes, written again while it goes on, for a small share of its time."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional

from reporting.base import Reporter
from reporting.page.assembly import render
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
from reporting.story import Story

FILE_NAME = "report.html"
MOST_OF_THE_TIME = 0.005  # the page's share of the run; with the views and the rest it stays under a hundredth
FIRST_GUESS_SECONDS = 0.1  # of a writing, before the first


class ReportReporter(Reporter):
    """Keeps `folder`/report.html. `history` is a resumed run's metrics.jsonl, read up to `resumed_step`.

    The page is written when the run begins and when it ends, and between them whenever there is news and its share of the
    time allows it. It is written beside and then renamed: who opens it sees all of one state.
    """

    def __init__(
        self,
        folder: Path,
        history: Optional[Path] = None,
        resumed_step: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._path = folder / FILE_NAME
        self._clock = clock
        self._begun = clock()
        self.seconds_spent = 0.0
        self._seconds_of_last = FIRST_GUESS_SECONDS
        self._has_news = False
        self._has_ended = False
        self._story = Story()
        with self._spending():
            if history is not None:
                self._story.recall(history, resumed_step)

    def began(self, record: RunRecord) -> None:
        self._story.run = record
        self._write("running")

    def note(self, text: str) -> None:
        self._story.note(text)

    def step(self, record: StepRecord) -> None:
        with self._spending():
            self._story.step(record)
        if self._has_news:
            self._write_if_cheap()

    def validated(self, record: ValidationRecord) -> None:
        self._story.validated(record)
        self._hear()

    def found(self, findings: Findings) -> None:
        self._story.found(findings)
        self._hear()

    def traced(self, timeline: Timeline) -> None:
        self._story.timeline = timeline
        self._hear()

    def held(self, record: MemoryRecord) -> None:
        self._story.memory = record
        self._hear()

    def viewed(self, views: ModelViews) -> None:
        self._story.views = views
        self._hear()

    def saved(self, record: SaveRecord) -> None:
        self._story.saved = record

    def finished(self, summary: Summary) -> None:
        self._story.summary = summary
        self._end("stopped" if summary.interrupted else "done")

    def close(self) -> None:
        """Comes alone where an error has ended the run."""
        self._end("failed")

    def _hear(self) -> None:
        self._has_news = True
        self._write_if_cheap()

    def _write_if_cheap(self) -> None:
        after = self.seconds_spent + self._seconds_of_last
        if after <= MOST_OF_THE_TIME * (self._clock() - self._begun):
            self._write("running")

    def _end(self, state: str) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._write(state)

    def _write(self, state: str) -> None:
        before = self.seconds_spent
        with self._spending():
            page = render(self._story, state, str(self._path.parent), time.time())
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside = self._path.with_name(f"{FILE_NAME}.tmp")
            beside.write_text(page, encoding="utf-8", errors="replace")
            os.replace(beside, self._path)
        self._seconds_of_last = self.seconds_spent - before
        self._has_news = False

    @contextmanager
    def _spending(self) -> Iterator[None]:
        begun = self._clock()
        try:
            yield
        finally:
            self.seconds_spent += self._clock() - begun
