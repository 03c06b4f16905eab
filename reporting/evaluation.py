"""What `validation.py` prints: notes, a progress bar in a terminal, and the result in the form that benchmark runners read."""

from __future__ import annotations

import sys
from typing import Any, Optional

from reporting.console import is_terminal
from reporting.lines import second_score
from reporting.records import ValidationRecord


class EvaluationProgress:
    """Counts samples up to `num_samples`; prints nothing where not `shown` (all processes but the main one)."""

    def __init__(self, num_samples: int, shown: bool = True) -> None:
        self._shown = shown
        self._num_samples = num_samples
        self._bar: Optional[Any] = None

    def __enter__(self) -> EvaluationProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_bar()

    def note(self, *texts: str) -> None:
        if self._shown:
            print(*texts, sep="\n", flush=True)

    def advance(self, num_samples: int) -> None:
        """`num_samples` more are done."""
        if self._shown and is_terminal(sys.stdout):
            if self._bar is None:
                self._bar = _open_bar(self._num_samples)
            self._bar.update(self._bar.task_ids[0], advance=num_samples, refresh=True)

    def finish(self, record: ValidationRecord) -> None:
        self._close_bar()
        self.note(
            "Validation Results",
            f"Valid Loss: {record.loss:.5f}",
            f"Valid Accuracy: {record.top1:.5f}",
            f"Valid {second_score(record)}: {record.top5:.5f}",
            f"Number of samples: {record.num_samples}",
        )

    def finish_knn(self, k: int, temperature: float, top1: float, top5: float, num_samples: int, num_near: int) -> None:
        self._close_bar()
        self.note(
            "k-NN Results",
            f"k-NN accuracy: {top1:.5f} (k {k}, temperature {temperature:g}, among {num_near:,} training images)",
            f"k-NN Top5: {top5:.5f}",
            f"Number of samples: {num_samples}",
        )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _open_bar(num_samples: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("validating"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, auto_refresh=False, transient=True, expand=True)
    bar.add_task("", total=num_samples)
    bar.start()
    return bar
