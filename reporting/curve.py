"""A run's figure over its steps, kept small: whatever a run's length, lowest and highest values stay in."""

from __future__ import annotations

import math
from typing import List, NamedTuple, Optional

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
        self._in_last = 0

    def add(self, step: float, value: Optional[float]) -> None:
        """None is no value at all: it was not computed."""
        if value is None:
            return
        point = one_value(step, value)
        if self._points and self._in_last < self._stride:
            self._points[-1] = joined(self._points[-1], point)
            self._in_last += 1
            return
        if len(self._points) == self._most:
            self._points = in_pairs(self._points)
            self._stride *= 2
        self._points.append(point)
        self._in_last = 1

    def points(self, most: int = 240) -> List[Point]:
        """At most `most` points for drawing."""
        points = self._points
        while len(points) > most:
            points = in_pairs(points)
        return points

    def __len__(self) -> int:
        return len(self._points)


def one_value(step: float, value: float) -> Point:
    if abs(value) < LARGEST:
        return Point(step, step, value, value, value)
    return Point(step, step, math.nan, math.nan, math.nan, 0, 1)


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
