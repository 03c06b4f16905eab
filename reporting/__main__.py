"""Runs beside each other: their figures and the keys that differ on the console, their curves over each other in a page.

python -m reporting compare runs/digits-20260101-120000 runs/digits-20260102-090000
python -m reporting compare RUN RUN RUN --output curves.html
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from errors import UserError, printable

EXIT_USER_ERROR = 2


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit code: 0, or 2 for a user's mistake."""
    arguments = _parser().parse_args(argv)
    try:
        compare(arguments.runs, arguments.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def compare(folders: List[str], output: str) -> None:
    """Prints the comparison and writes the page. Raises UserError for what cannot be read or written."""
    from reporting.comparison import text
    from reporting.page.compared import render
    from reporting.runs import read_runs

    if len(folders) < 2:
        raise UserError("there is one run, and nothing to compare it with.\n       Name two run folders or more.")
    runs = read_runs(folders)
    print(text(runs))
    if output:
        _write(Path(output).expanduser(), render(runs))
        print(f"\ncurves: {printable(output)}")


def _write(path: Path, page: str) -> None:
    """Beside and then renamed: a page that is being looked at stays whole."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        beside.write_text(page, encoding="utf-8", errors="replace")
        os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"{printable(str(path))} cannot be written: {error.strerror}.\n       Name another file with --output."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reporting", description="What runs have recorded.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="compare", required=True)
    one = commands.add_parser("compare", help="several runs beside each other", allow_abbrev=False)
    one.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    one.add_argument(
        "--output", default="compare.html", metavar="FILE", help='the page (default: compare.html); "" writes none'
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
