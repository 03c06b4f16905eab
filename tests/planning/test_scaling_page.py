"""docs/scaling.md says what the model says now."""

from __future__ import annotations

from pathlib import Path

from benchmarks.markdown import markdown, section
from benchmarks.scaling_predictions import HEADERS, cases, cells_of, is_in_page, predictions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


def test_the_predictions_on_the_page_are_those_of_the_model() -> None:
    rows = predictions([case for case in cases() if is_in_page(case)])
    written = section(PAGE.read_text(encoding="utf-8"), "predictions")
    assert written == markdown(HEADERS, [cells_of(row) for row in rows]), (
        "python benchmarks/scaling_predictions.py --page docs/scaling.md --chart docs/scaling.svg"
    )
