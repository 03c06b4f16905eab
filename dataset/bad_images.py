"""Images that cannot be read: counted, and listed in the run folder, once by each process that meets them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple, Optional, Set

from errors import UserError, printable

FILE_NAME = "bad_images.txt"


class Bad(NamedTuple):
    """A row of a batch whose image cannot be read; the row holds zeros."""

    row: int
    where: str
    reason: str

    def as_error(self) -> UserError:
        return UserError(
            f"cannot read image {printable(self.where)}: {self.reason}\n"
            "       Replace the file, take it out of the data set, or go on without such images: --bad-images skip"
        )


class BadImageLog:
    """What one process has met."""

    def __init__(self) -> None:
        self.folder: Optional[Path] = None
        self.count = 0  # of readings that failed; an image that is met in two epochs counts twice
        self.last = ""
        self._known: Set[str] = set()

    def write_into(self, folder: Path) -> None:
        """Lists what is met from now on in this run folder; what is listed there already is known."""
        self.folder = folder
        with contextlib.suppress(OSError):
            lines = (folder / FILE_NAME).read_bytes().splitlines()
            self._known.update(os.fsdecode(line).split("\t")[0] for line in lines)

    def add(self, bad: Bad) -> None:
        """Raises nothing: a full disk must not end a run that goes on without images."""
        self.count += 1
        self.last = printable(f"{bad.where}: {bad.reason}")
        if bad.where in self._known:
            return
        self._known.add(bad.where)
        if self.folder is not None:
            self._append(self.folder / FILE_NAME, f"{bad.where}\t{bad.reason}\n")

    def _append(self, path: Path, line: str) -> None:
        # One write of a whole line: other replicas' processes append to the same file. Names that are no UTF-8 stay as they are.
        with contextlib.suppress(OSError), open(path, "ab") as file:
            file.write(os.fsencode(line))
