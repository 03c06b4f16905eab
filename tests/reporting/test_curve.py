from __future__ import annotations

import math

import numpy as np
import pytest

from reporting.curve import Curve, in_pairs


def curve_of(values, most=1024):
    curve = Curve(most)
    for step, value in enumerate(values, 1):
        curve.add(step, value)
    return curve


@pytest.mark.parametrize("count", [1, 7, 16, 17, 1000, 4099])
def test_a_long_curve_keeps_extremes_mean_and_steps(count):
    values = np.random.default_rng(count).normal(size=count)
    points = curve_of(values.tolist(), most=16).points(most=10)
    assert len(points) <= 10
    assert (points[0].start, points[-1].end) == (1, count)
    assert sum(point.finite for point in points) == count
    assert min(point.low for point in points) == values.min()
    assert max(point.high for point in points) == values.max()
    assert sum(point.mean * point.finite for point in points) / count == pytest.approx(values.mean(), abs=1e-12)
    for point in points:
        piece = values[int(point.start) - 1 : int(point.end)]
        assert (point.low, point.high) == (piece.min(), piece.max())
        assert point.mean == pytest.approx(piece.mean(), abs=1e-12)


def test_what_is_not_finite_is_counted_and_spoils_no_mean():
    points = curve_of([1.0, math.nan, 3.0, math.inf, 1e305, -math.inf]).points()
    assert [point.finite for point in points] == [1, 0, 1, 0, 0, 0]
    (all_of_them,) = in_pairs(in_pairs(in_pairs(points)))
    assert (all_of_them.mean, all_of_them.low, all_of_them.high, all_of_them.broken) == (2.0, 1.0, 3.0, 4)


def test_huge_values_do_not_overflow():
    (point,) = curve_of([9e299] * 100).points(1)
    assert point.mean == pytest.approx(9e299)


def test_what_was_not_computed_is_no_value():
    assert curve_of([None, None]).points() == []
