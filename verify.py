"""Goes over a data set: reads and decodes every image, says what is there and what is wrong, and draws a contact sheet.

    python verify.py --config folder --dataset-path my_images
    python verify.py --config folder --dataset-path my_images --list bad.txt --contact-sheet sheet.png --samples 10

Ends with 0 where all images are fine, 1 where some are bad. `--help` lists all keys.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import launch
from arguments import Parser, with_hyphens
from errors import UserError, printable, user_path

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source
    from dataset.inspection import BadImage, Report

MOST_LISTED = 20  # bad images that are printed
MOST_SAMPLES = 100


def main(argv: Optional[Sequence[str]] = None) -> int:
    own, rest = parse_own_flags(sys.argv[1:] if argv is None else argv)
    from config import load_config

    config = load_config("verify", rest)
    sheet = sheet_path(own.contact_sheet)

    from dataset.registry import open_source
    from inspection_text import closing_line, report_lines

    splits = {split: open_source(config, split) for split in ("train", "validation")}
    sources = {split: source for split, source in splits.items() if source is not None}
    with BadList(own.list) as bad:
        reports = {split: _inspected(split, source, config, bad) for split, source in sources.items()}
    print(
        f"dataset = {config.dataset}"
        + (f", dataset_path = {printable(config.dataset_path)}" if config.dataset_path else "")
    )
    for note in dict.fromkeys(note for source in sources.values() for note in source.notes):
        print(printable(note))
    if bad.count:
        print("", *bad.lines(), sep="\n")
    for split, report in reports.items():
        print("", *report_lines(split, report, sources[split], config), sep="\n")
    print()
    if sheet is not None:
        print(_draw_sheet(sources["train"], config, own.samples, sheet))
    total = sum(report.num_images for report in reports.values())
    print(closing_line(bad.count, total))
    return 1 if bad.count else 0


# Flags of this command alone.


def parse_own_flags(argv: Sequence[str]) -> Tuple[argparse.Namespace, List[str]]:
    """This command's own flags, and all other words. Prints their help where it is asked for; the keys' help follows."""
    parser = Parser(prog="verify.py", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    own = parser.add_argument_group("what to write (flags of verify.py alone)")
    own.add_argument(
        "--contact-sheet",
        metavar="FILE.png",
        default="contact_sheet.png",
        help='picture of training images as the model will see them (default: %(default)s; "" for none)',
    )
    own.add_argument("--samples", metavar="N", type=int, default=6, help="rows of it (default: %(default)s)")
    own.add_argument("--list", metavar="FILE", help="write every bad image and the reason into this file")
    known = ("--contact_sheet",)
    given, rest = parser.parse_known_args([with_hyphens(word, known) for word in argv])
    if not 1 <= given.samples <= MOST_SAMPLES:
        raise UserError(f"--samples {given.samples}: give 1 to {MOST_SAMPLES} rows.")
    if "--help" in rest or "-h" in rest:
        print(parser.format_help())
    return given, rest


def sheet_path(name: str) -> Optional[Path]:
    """Where the sheet goes; None for none. Raises UserError now rather than after hours where it cannot be written."""
    if not name:
        return None
    path = user_path(name)
    if path.suffix.lower() != ".png":
        raise UserError(f"--contact-sheet {name}: give a name that ends in .png.")
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not os.access(target, os.W_OK):
        raise UserError(
            f'--contact-sheet {name} cannot be written in {path.absolute().parent}.\n       Give another, or "" for none.'
        )
    return path


# Work.


def _inspected(split: str, source: Source, config: Config, bad: BadList) -> Report:
    from dataset.inspection import inspect

    bad.split = split
    with Progress(split, len(source)) as progress:
        return inspect(source, config, progress.advance, bad.add)


def _draw_sheet(source: Source, config: Config, num_rows: int, path: Path) -> str:
    """Draws and saves the contact sheet; returns what to say of it."""
    from dataset.contact_sheet import contact_sheet

    image = contact_sheet(source, config, num_rows)
    if image is None:
        return "no contact sheet: none of the images that were drawn for it can be read"
    try:
        image.save(path)
    except OSError as error:
        raise UserError(f"--contact-sheet {path} cannot be written ({error.strerror or error}).") from error
    return f"contact sheet: {path}"


class Progress:
    """A bar in a terminal, a line every few seconds elsewhere."""

    def __init__(self, split: str, num_images: int) -> None:
        from dataset.sources.progress import LongWork
        from reporting.console import is_terminal

        self._bar = _open_bar(split, num_images) if is_terminal(sys.stdout) else None
        self._lines = LongWork(split, f"of {num_images:,} images")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, num_images: int) -> None:
        if self._bar is None:
            self._lines.add(num_images)
        else:
            self._bar.update(self._bar.task_ids[0], advance=num_images, refresh=True)


def _open_bar(split: str, num_images: int) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(split), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
    # No refresh thread: workers are forked meanwhile.
    bar = Progress(*columns, auto_refresh=False, transient=True, expand=True)
    bar.add_task("", total=num_images)
    bar.start()
    return bar


class BadList:
    """Counts bad images, keeps the first few, and writes all into a file if one is named."""

    def __init__(self, name: Optional[str]) -> None:
        self.split = ""  # that is gone over
        self.count = 0
        self._first: List[Tuple[str, str, str]] = []
        self._name, self._file = name, None
        if name:
            try:
                # Names of files that are no UTF-8 are written as they are.
                self._file = open(user_path(name), "w", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
            except OSError as error:
                raise UserError(f"--list {name} cannot be written ({error.strerror}).") from error

    def __enter__(self) -> BadList:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, bad: BadImage) -> None:
        self.count += 1
        if self._file is not None:
            self._file.write(f"{bad.where}\t{bad.reason}\n")
        if self.count <= MOST_LISTED:
            self._first.append((self.split, printable(bad.where), printable(bad.reason)))

    def lines(self) -> List[str]:
        from reporting.tables import table

        lines = [f"bad images: {self.count:,}", table(["split", "where", "reason"], self._first)]
        if self.count > MOST_LISTED:
            lines.append(f"and {self.count - MOST_LISTED:,} more" + ("" if self._name else "; --list FILE writes all"))
        return [*lines, f"all of them: {self._name}"] if self._name else lines


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(launch.guarded(lambda: main(arguments), debug="--debug" in arguments))
