"""A run's figure over its steps, kept small: whatever a run's length, lowest and highest values stay in."""

from __future__ import annotations

import math
from typing import List, NamedTuple, Optional, Sequence, Tuple

LARGEST = 1e300  # what is larger is as good as infinite, and can be neither subtracted nor drawn


class Point(NamedTuple):
    """One or several following values. Where none is finite, `mean`, `low` and `high` are NaN."""

    start: float  # the step of the first
    end: float  # and of the last
    mean: float
    low: float
    high: float
    finite: int = 1  # values that are finite
    broken: int = 0  # values that are not finite

    @property
    def x(self) -> float:
        return (self.start + self.end) / 2


class Curve:
    """Takes values one by one in rising steps; keeps at most `most` points, each of equally many values but the last."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._points: List[Point] = []
        self._stride = 1  # values of a point
        self._waiting: List[Tuple[float, float]] = []  # fewer than that

    def add(self, step: float, value: Optional[float]) -> None:
        """None is no value at all: it was not computed."""
        if value is None:
            return
        self._waiting.append((step, value))
        if len(self._waiting) == self._stride:
            self._points.append(of_values(self._waiting))
            self._waiting = []
            if len(self._points) == self._most:
                self._points = in_pairs(self._points)
                self._stride *= 2

    def points(self, most: int = 480) -> List[Point]:
        """At most `most` points for drawing."""
        points = self._points + ([of_values(self._waiting)] if self._waiting else [])
        while len(points) > most:
            points = in_pairs(points)
        return points


def of_values(values: Sequence[Tuple[float, float]]) -> Point:
    """Pairs of step and value as one point."""
    start, end = values[0][0], values[-1][0]
    finite = [value for _, value in values if abs(value) < LARGEST]
    if not finite:
        return Point(start, end, math.nan, math.nan, math.nan, 0, len(values))
    mean = sum(value / len(finite) for value in finite) if len(finite) > 1 else finite[0]
    return Point(start, end, mean, min(finite), max(finite), len(finite), len(values) - len(finite))


def joined(one: Point, other: Point) -> Point:
    """Two neighbours as one point."""
    count, broken = one.finite + other.finite, one.broken + other.broken
    if not one.finite or not other.finite:
        values = (one if one.finite else other)[2:5]
    else:
        share = other.finite / count  # by shares: sums of huge values would overflow
        mean = one.mean * (1 - share) + other.mean * share
        values = (mean, min(one.low, other.low), max(one.high, other.high))
    return Point(one.start, other.end, *values, count, broken)


def in_pairs(points: List[Point]) -> List[Point]:
    pairs = [joined(points[index], points[index + 1]) for index in range(0, len(points) - 1, 2)]
    return pairs + points[len(pairs) * 2 :]
