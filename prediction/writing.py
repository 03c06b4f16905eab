"""Where answers go: standard output or a file, with a progress bar on standard error where that is a terminal."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, List, Optional, Sequence, TextIO

from dataset.sources.image_files import SUFFIXES
from errors import UserError, user_path
from prediction.answers import Answer
from prediction.forms import Form, bad_pictures
from reporting.console import is_terminal


class AnswerWriter:
    """Writes answers as they come, and keeps those of pictures that cannot be read. A context manager."""

    def __init__(self, form: Form, num_pictures: int, output: Optional[str], bar_from: int) -> None:
        """`output` names a file; None is standard output. Runs of fewer than `bar_from` pictures show no bar."""
        self._form = form
        self._stream = _open(output) if output else _as_they_are(sys.stdout)
        self._owns_stream = output is not None
        shows_bar = num_pictures >= bar_from and is_terminal(sys.stderr)
        self._bar = _Bar(num_pictures, over_text=is_terminal(sys.stdout) and not output) if shows_bar else None
        self.bad: List[Answer] = []

    def __enter__(self) -> AnswerWriter:
        self._stream.write(self._form.head)
        return self

    def write(self, answers: Sequence[Answer]) -> None:
        self.bad += [answer for answer in answers if answer.reason]
        text = "".join(map(self._form.lines, answers))
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(text)
        self._stream.flush()
        if self._bar is not None:
            self._bar.advance(len(answers))

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._owns_stream:
            self._stream.close()

    def list_bad(self) -> None:
        """Says on standard error which pictures cannot be read, if any."""
        if self.bad:
            print(bad_pictures(self.bad), end="", file=_any_letters(sys.stderr), flush=True)


class _Bar:
    """Counts pictures at the foot of the terminal; steps aside for text that goes to the same one."""

    def __init__(self, total: int, over_text: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("predicting"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(file=sys.stderr, force_terminal=True)
        # rich would take over standard output, which may be a pipe.
        self._progress: Any = Progress(
            *columns, console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._progress.add_task("", total=total)
        self._over_text = over_text
        self._progress.start()

    def clear(self) -> None:
        if self._over_text:
            self._progress.stop()

    def advance(self, num_pictures: int) -> None:
        self._progress.update(self._task, advance=num_pictures)
        if self._over_text:
            self._progress.start()
        self._progress.refresh()

    def stop(self) -> None:
        self._progress.stop()


def check_output(name: Optional[str], paths: Sequence[str], checkpoint: str, class_names: Optional[str]) -> None:
    """Raises UserError where the answers would overwrite one of the pictures, the model or the names of its classes."""
    if name and any(_is_within(name, path) for path in (checkpoint, class_names) if path):
        raise UserError(f"--output {name} is of the model itself. Give another name.")
    if name and os.path.realpath(user_path(name)) in map(os.path.realpath, paths):
        raise UserError(f"--output {name} is one of the pictures. Give another name.")
    if name and name.lower().endswith(SUFFIXES):
        raise UserError(f"--output {name} is a picture's name, but answers are text. Give another name.")


def _is_within(name: str, path: str) -> bool:
    """Whether `name` is a path, or below it."""
    inner, outer = (os.path.realpath(user_path(one)) for one in (name, path))
    return os.path.exists(outer) and f"{inner}{os.sep}".startswith(f"{outer}{os.sep}")


def _open(name: str) -> TextIO:
    try:
        return open(user_path(name), "w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise UserError(f"--output {name} cannot be written ({error.strerror}).") from error


def _as_they_are(stream: TextIO) -> TextIO:
    """Names of files that are no UTF-8 pass through it unchanged."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    return stream


def _any_letters(stream: TextIO) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")
    return stream
