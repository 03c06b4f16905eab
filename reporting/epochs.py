"""The table of a run's epochs that stands at its end."""

from __future__ import annotations

from typing import List, Optional, Tuple

from reporting.records import StepRecord, ValidationRecord
from reporting.tables import table

MOST_ROWS = 20


class EpochTable:
    """Takes in steps and validations; a row is a validation, with the mean training loss of the steps since the one before."""

    def __init__(self) -> None:
        self._losses: List[float] = []
        self._train_loss: Optional[float] = None
        self._rows: List[Tuple[int, List[str]]] = []  # with the host step
        self._score = "accuracy"

    def step(self, record: StepRecord) -> None:
        self._losses.append(record.loss)

    def validated(self, record: ValidationRecord) -> None:
        """Of two validations of a step, the second is that of the averaged weights, which are what is judged."""
        if self._losses:
            self._train_loss, self._losses = sum(self._losses) / len(self._losses), []
        if self._rows and self._rows[-1][0] == record.step:
            self._rows.pop()
        train_loss = "-" if self._train_loss is None else f"{self._train_loss:.4f}"
        score = record.top1
        if record.auc is not None:
            self._score, score = "AUC", record.auc
        self._rows.append((record.step, [f"{record.epoch:.4g}", train_loss, f"{record.loss:.4f}", f"{score:.4f}"]))

    def text(self) -> Optional[str]:
        """The last rows; None for a run that was not validated."""
        rows = [row for _, row in self._rows[-MOST_ROWS:]]
        return table(("epoch", "train loss", "eval loss", self._score), rows) if rows else None
