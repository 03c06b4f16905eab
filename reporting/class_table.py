"""A table of what is known of each label of a multi-label set."""

from __future__ import annotations

from typing import Optional, Sequence

from errors import printable
from reporting.records import ClassResult
from reporting.tables import table

HEADERS = ("class", "AUC", "positives", "threshold", "sensitivity", "specificity")


def class_table(classes: Sequence[ClassResult]) -> str:
    """A row a class, and the mean AUC. The threshold is a probability, chosen on the very images that the table is about."""
    rows = [
        [
            printable(one.name),
            _figure(one.auc),
            f"{one.num_positive:,}",
            _threshold(one.threshold),
            _figure(one.sensitivity, 3),
            _figure(one.specificity, 3),
        ]
        for one in classes
    ]
    areas = [one.auc for one in classes if one.auc is not None]
    if areas:
        rows.append(["mean", _figure(sum(areas) / len(areas)), "", "", "", ""])
    return table(HEADERS, rows)


def _figure(value: Optional[float], digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _threshold(value: Optional[float]) -> str:
    """Of rare classes thresholds are small."""
    return "-" if value is None else f"{value:.3g}"
