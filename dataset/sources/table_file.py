"""Tables in text files: columns with names, rows with numbers, and what is wrong where."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Iterator, List, TextIO, Tuple

from dataset.sources.progress import LongWork
from errors import UserError, nearest

DELIMITERS = (",", ";", "\t")
QUOTED = re.compile('"[^"]*"')
ROWS_A_REPORT = 50_000


class Table:
    """A CSV file with a header: UTF-8, the fields set apart by commas, semicolons or tabs."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where the file is not such a table, has no row below its header, or names a column twice."""
        self.path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else self._sniffed()
        records = self._records()
        _, header = next(records, (0, []))
        self.columns = [name.strip() for name in header]
        while self.columns and not self.columns[-1]:  # the header ends in a delimiter
            self.columns.pop()
        if any("\0" in name for name in self.columns):
            raise self._not_text()
        if not self.columns:
            raise UserError(
                f"{path} is empty.\n       It needs a line of column names, and below it a row for each image."
            )
        if next(records, None) is None:
            raise UserError(f"{path} has column names, but no row below them.\n       It needs a row for each image.")
        twice = [name for name in self.columns if name and self.columns.count(name) > 1]
        if twice:
            raise UserError(
                f"{path} has two columns named {shown(twice[0])}.\n       Rename one of them in its first line."
            )

    def position(self, column: str) -> int:
        """Which field of a row is the column's. Raises UserError where there is no such column."""
        if column not in self.columns:
            raise UserError(
                f"{self.path} has no column {shown(column)}.{nearest(column, self.columns)}\n"
                f"       Its columns: {self.listed()}."
            )
        return self.columns.index(column)

    def listed(self) -> str:
        named = [name for name in self.columns if name]
        return ", ".join(named[:20]) + (f", ... ({len(named)} in all)" if len(named) > 20 else "")

    def rows(self) -> Iterator[Tuple[int, List[str]]]:
        """Line number in the file and fields of each row, a field for every column. Raises UserError at a bad row."""
        records, width = self._records(), len(self.columns)
        next(records)
        work = LongWork(f"reading {self.path}", "rows")
        for count, (number, row) in enumerate(records, 1):
            if len(row) < width or (len(row) > width and any(row[width:])):
                remedy = 'Complete the row. A field that holds the delimiter stands in "quotes".'
                raise self.bad_row(number, f"has {_counted(len(row), 'field')}, but there are {width} columns", remedy)
            if count % ROWS_A_REPORT == 0:
                work.add(ROWS_A_REPORT)
            yield number, row

    def bad_row(self, number: int, problem: str, remedy: str) -> UserError:
        return UserError(f"row {number} of {self.path} {problem}.\n       {remedy}")

    def _records(self) -> Iterator[Tuple[int, List[str]]]:
        """Everything but empty lines, the header too."""
        with self._open() as file:
            # Strict, because a quote that is never closed would take the rest of the file for one field.
            reader = csv.reader(file, delimiter=self._delimiter, skipinitialspace=True, strict=True)
            try:
                for row in reader:
                    if row and row != [""]:
                        yield reader.line_num, row
            except csv.Error as error:
                if "line contains NUL" in str(error):  # Python 3.11 and later read them
                    raise self._not_text() from None
                remedy = 'Look there and above for a " without its partner; a " within a quoted field is written "".'
                raise self.bad_row(reader.line_num, f"cannot be read: {error}", remedy) from None
            except UnicodeDecodeError:
                raise self._not_text() from None

    def _sniffed(self) -> str:
        with self._open() as file:
            try:
                header = next((line for line in file if line.strip()), "")
            except UnicodeDecodeError:
                raise self._not_text() from None
        return max(DELIMITERS, key=QUOTED.sub("", header).count)

    def _open(self) -> TextIO:
        try:
            return open(self.path, encoding="utf-8-sig", newline="")
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}.") from error

    def _not_text(self) -> UserError:
        """Decoding goes block by block: which line stopped it is found by trying them again."""
        with open(self.path, "rb") as file:
            number = next((number for number, line in enumerate(file, 1) if not _is_text(line)), 1)
        return UserError(
            f"{self.path} is not text in UTF-8: see line {number}.\n       Save the table as CSV with the encoding UTF-8."
        )


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()
    except UnicodeDecodeError:
        return False


def shown(value: str) -> str:
    """A value of the file as messages quote it, cut where it is long."""
    return repr(value if len(value) <= 60 else f"{value[:60]}...")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
