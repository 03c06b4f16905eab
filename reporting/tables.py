"""Plain text tables."""

from __future__ import annotations

from typing import List, Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Headers, a rule and the rows, in columns as wide as their longest cell; columns of figures stand on the right.

    table(["stage", "blocks"], [["first", 2], ["last", 10]]) gives

        stage  blocks
        -----  ------
        first       2
        last       10
    """
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        assert len(row) == len(headers), f"{len(row)} cells under {len(headers)} headers: {row}"
    columns = list(zip(headers, *cells))
    widths = [max(map(len, column)) for column in columns]
    stand_right = [len(column) > 1 and all(map(is_figure, column[1:])) for column in columns]
    ruled: List[Sequence[str]] = [headers, ["-" * width for width in widths], *cells]
    return "\n".join(_line(row, widths, stand_right) for row in ruled)


def is_figure(cell: str) -> bool:
    """Whether a cell starts like a number ("12", "1,234", "3.5 MiB", "-0.1") or stands for a missing one ("", "-")."""
    return cell in ("", "-") or cell.lstrip("+-.")[:1].isdigit()


def _line(row: Sequence[str], widths: Sequence[int], stand_right: Sequence[bool]) -> str:
    padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, stand_right)]
    return "  ".join(padded).rstrip()
