"""Reports on standard output: log lines alone in a file or a pipe, log lines above a progress bar in a terminal.

A quiet run prints its closing lines, what is noted once it has begun, and what goes wrong before ("note: …").
"""

from __future__ import annotations

import os
import sys
from typing import Optional, TextIO

from reporting import lines
from reporting.base import Reporter
from reporting.class_table import class_table
from reporting.epochs import EpochTable
from reporting.records import Findings, RunRecord, SaveRecord, StepRecord, Summary, ValidationRecord

TROUBLE = "note: "  # how notes of what does not work begin


class ConsoleReporter(Reporter):
    """Writes to `stream` (default: standard output). `completed_steps` is where a resumed run's bar starts."""

    def __init__(
        self, num_steps: int, completed_steps: int = 0, stream: Optional[TextIO] = None, quiet: bool = False
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._quiet, self._has_begun = quiet, False
        self._epochs = EpochTable()
        self._best: Optional[ValidationRecord] = None
        self._findings: Optional[Findings] = (
            None  # of the best validation; of the newest, where this run has had no best one
        )
        self._bar = None
        if is_terminal(self._stream) and not quiet:
            from reporting.progress import ProgressBar

            self._bar = ProgressBar(num_steps, completed_steps, self._stream)

    def began(self, record: RunRecord) -> None:
        self._has_begun = True

    def note(self, text: str) -> None:
        if not self._quiet or self._has_begun or text.startswith(TROUBLE):
            self._write(text)

    def step(self, record: StepRecord) -> None:
        self._epochs.step(record)
        self._write_line(lines.step_line(record))
        if self._bar is not None:
            self._bar.update(record)

    def validating(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.validating(done, total)

    def validated(self, record: ValidationRecord) -> None:
        self._epochs.validated(record)
        self._best = record if record.is_best else self._best
        self._write_line(lines.validation_line(record))

    def found(self, findings: Findings) -> None:
        best = self._best
        if best is None or (best.step, best.averaged) == (findings.step, findings.averaged):
            self._findings = findings

    def saved(self, record: SaveRecord) -> None:
        self._write_line(lines.saved_line(record))

    def finished(self, summary: Summary) -> None:
        self.close()
        table = self._epochs.text()
        if table is not None:
            self._write(table)
        if self._findings is not None and self._findings.classes:
            self._write(f"Classes at step {self._findings.step:,}\n{class_table(self._findings.classes)}")
        self._write("\n".join(lines.summary_lines(summary)))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write_line(self, text: str) -> None:
        """One of those that a quiet run leaves out."""
        if not self._quiet:
            self._write(text)

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.print_above(text)
        else:
            print(text, file=self._stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` can redraw a line. Variables that force colours into pipes do not count: logs stay parseable."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
