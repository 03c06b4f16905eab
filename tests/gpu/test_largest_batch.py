"""The bisection of `benchmarks/gpu_memory.py`: the largest batch that fits, in few tries."""

from __future__ import annotations

from typing import List

import pytest

from benchmarks.gpu_memory import largest_that


@pytest.mark.parametrize("limit", [0, 1, 3, 8, 9, 700, 4095, 4096, 70_000])
def test_bisection_finds_the_largest_batch_that_fits(limit: int) -> None:
    tried: List[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found, most = largest_that(fits, 4096, 0.05), min(limit, 4096)
    assert found <= most
    assert found >= most - max(1, 0.05 * most)
    assert len(tried) == len(set(tried)) <= 20
    assert max(tried) <= 4096
