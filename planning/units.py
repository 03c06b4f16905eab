"""Numbers as a plan prints them: three significant figures, as more would be a promise, in a unit that suits them."""

from __future__ import annotations

from typing import Iterable, Sequence, Tuple

KIB, MIB = 2**10, 2**20


def rounded(number: float) -> str:
    """To three significant figures, never as a power of ten: 7,000, 6.54, 0.0432."""
    if not number:
        return "0"
    exponent = int(f"{number:.2e}".split("e")[1])  # after rounding: 9.999 is 10.0
    digits = 2 - exponent
    return f"{round(number, digits):,.{max(0, digits)}f}"


def size_text(number: float) -> str:
    """Bytes in MiB, small ones in KiB; whole MiB from 100 on."""
    if number >= 100 * MIB:
        return f"{number / MIB:,.0f} MiB"
    if number >= MIB:
        return f"{rounded(number / MIB)} MiB"
    return f"{rounded(number / KIB)} KiB" if number >= KIB else f"{number:.0f} B"


def duration_text(seconds: float) -> str:
    unit, factor = time_unit([seconds])
    return f"{rounded(seconds * factor)} {unit}"


def one_of(numbers: Iterable[int]) -> str:
    """1, 2 or 4"""
    *before, last = map(str, numbers)
    return f"{', '.join(before)} or {last}" if before else last


def time_unit(seconds: Sequence[float]) -> Tuple[str, float]:
    """The unit that suits the longest of them, and how many of it a second has."""
    longest = max(seconds)
    return ("s", 1.0) if longest >= 1 else ("ms", 1e3) if longest >= 1e-3 else ("µs", 1e6)
