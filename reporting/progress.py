"""The progress bar at the foot of a terminal."""

from __future__ import annotations

import atexit
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from reporting import lines
from reporting.records import StepRecord


class ProgressBar:
    """Step, loss, learning rate, images a second, share of time spent waiting for data, and time left.

    The bar appears with the first update and leaves no trace when closed.
    """

    def __init__(self, num_steps: int, completed_steps: int, stream: TextIO) -> None:
        self._console = Console(file=stream, force_terminal=True)
        # No refresh thread: loader workers may be forked while it holds the console's lock. A step redraws the bar.
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
            speed_estimate_period=3600,  # rich forgets steps older than this, and with them how long one takes
        )
        self._task = self._progress.add_task("", total=num_steps, completed=completed_steps, figures="")
        self._is_shown = False
        self._last_drawn = 0.0

    def update(self, record: StepRecord) -> None:
        """Takes in a step."""
        self._progress.update(self._task, completed=record.step, figures=figures(record))
        self._draw()

    def validating(self, done: int, total: int) -> None:
        """Shows how far a validation pass is, in place of the step's figures."""
        self._progress.update(self._task, figures=f"validating: {100 * done // total} % of {total:,} batches")
        self._draw()

    def _draw(self) -> None:
        """Draws the bar unless that was done a moment ago: drawing takes 2 ms."""
        if not self._is_shown:
            self._is_shown = True
            self._progress.start()
            atexit.register(self.close)  # a crash must not leave the cursor hidden
        elif time.monotonic() - self._last_drawn > 0.1:
            self._progress.refresh()
        else:
            return
        self._last_drawn = time.monotonic()

    def print_above(self, text: str) -> None:
        """Prints lines above the bar as they are: never wrapped, cut or styled."""
        self._console.out(text, highlight=False)

    def close(self) -> None:
        """Removes the bar and gives the cursor back."""
        if self._is_shown:
            self._is_shown = False
            self._progress.stop()
            atexit.unregister(self.close)


def figures(record: StepRecord) -> str:
    """The step's figures, short enough for a bar beside them at 80 columns."""
    speed = f"{lines.rate(record.images_per_second)} images/s"
    wait = f"data wait {100 * lines.data_wait_share(record):.0f}%"
    return f"loss {record.loss:.3f} lr {record.learning_rate:.1e} {speed} {wait}"
