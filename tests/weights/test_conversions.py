"""Every conversion gives the logits of the library that it comes from or goes to, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.newer_torch import exports, reads_pickles
from tests.weights.cells import cells

CELLS = cells()
MARKS = {
    name: [pytest.mark.slow] * cell.is_slow + [reads_pickles] * cell.reads_pickles + [exports] * cell.exports
    for name, cell in CELLS.items()
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in MARKS.items()])
def test_converted_logits_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    assert CELLS[name].measure(tmp_path) <= 1e-5
