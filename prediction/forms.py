"""Answers as text: a table for people, JSON or CSV for programs, each written picture by picture."""

from __future__ import annotations

import csv
import io
import json
from typing import Iterable, List, Protocol, Sequence

from errors import printable
from prediction.answers import Answer
from reporting.tables import table

MOST_OF_A_NAME = 100  # letters of a column that the table keeps free
NO_LABEL = "(none reaches its threshold)"


class Form(Protocol):
    """How answers are written: `head` before all, `lines` for each. Text ends in a new line."""

    head: str

    def lines(self, answer: Answer) -> str: ...


def form(kind: str, paths: Sequence[str], names: Sequence[str]) -> Form:
    """`table`, `json` or `csv`; `paths` and `names` of classes say how wide a table's columns are."""
    if kind == "json":
        return JsonLines()
    return Csv() if kind == "csv" else Table(paths, names)


class Table:
    """A line an answer; the picture's name stands in the first alone. Pictures that cannot be read are listed elsewhere."""

    def __init__(self, paths: Sequence[str], names: Sequence[str]) -> None:
        shown = (printable(path) for path in paths)
        self._widths = [_width("picture", shown), _width("label", map(printable, names)), len("probability")]
        self.head = self._row("picture", "label", "probability") + self._row(*("-" * width for width in self._widths))

    def lines(self, answer: Answer) -> str:
        if answer.reason:
            return ""
        rows = [(printable(one.name), percent(one.probability)) for one in answer.labels] or [(NO_LABEL, "")]
        firsts = [printable(answer.path)] + [""] * (len(rows) - 1)
        return "".join(self._row(first, *row) for first, row in zip(firsts, rows))

    def _row(self, picture: str, label: str, probability: str) -> str:
        widths = self._widths
        return f"{picture.ljust(widths[0])}  {label.ljust(widths[1])}  {probability.rjust(widths[2])}".rstrip() + "\n"


class JsonLines:
    """An object a picture and line: `picture`, and `error` or `labels`, each with `label`, `name` and `probability`.

    Letters beyond ASCII are escaped: even a name that is no UTF-8 comes back as the file system has it.
    """

    head = ""

    def lines(self, answer: Answer) -> str:
        if answer.reason:
            return json.dumps({"picture": answer.path, "error": answer.reason}) + "\n"
        labels = [label._asdict() for label in answer.labels]
        return json.dumps({"picture": answer.path, "labels": labels}) + "\n"


class Csv:
    """A line an answer. A picture without one has a line, too: with `error`, or empty where no label reaches its threshold."""

    COLUMNS = ("picture", "rank", "label", "name", "probability", "error")

    def __init__(self) -> None:
        self.head = _csv_lines([self.COLUMNS])

    def lines(self, answer: Answer) -> str:
        rows: List[Sequence[object]] = [
            (answer.path, rank, one.label, one.name, f"{one.probability:.6g}", "")
            for rank, one in enumerate(answer.labels, 1)
        ]
        return _csv_lines(rows or [(answer.path, "", "", "", "", answer.reason)])


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def bad_pictures(bad: Sequence[Answer]) -> str:
    """The list at the end of those that cannot be read."""
    rows = [(printable(one.path), printable(one.reason)) for one in bad]
    return f"pictures that cannot be read: {len(bad):,}\n{table(['picture', 'reason'], rows)}\n"


def _width(heading: str, cells: Iterable[str]) -> int:
    return max(len(heading), min(max(map(len, cells), default=0), MOST_OF_A_NAME))


def _csv_lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
