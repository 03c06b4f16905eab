"""What the page tells of a run: its records so far, kept small however long it runs."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

from reporting.curve import Curve
from reporting.jsonl import kept_lines
from reporting.lines import data_wait_share
from reporting.records import (
    Findings,
    MemoryRecord,
    ModelViews,
    RunRecord,
    SaveRecord,
    StepRecord,
    Summary,
    Timeline,
    ValidationRecord,
)

MOST_NOTES = 60
Record = TypeVar("Record")


class Story:
    """Takes records in; the page's sections read it. Of findings, timelines, memory and views the newest counts."""

    def __init__(self) -> None:
        self.run: Optional[RunRecord] = None
        self.steps: Dict[str, Curve] = {}  # by the name of a step's figure
        self.scores: Dict[Tuple[str, bool], Curve] = {}  # by the score's name and whether it is of averaged weights
        self.last_step: Optional[StepRecord] = None
        self.last_validation: Optional[ValidationRecord] = None
        self.best: Optional[ValidationRecord] = None
        self.findings: Optional[Findings] = None
        self.timeline: Optional[Timeline] = None
        self.memory: Optional[MemoryRecord] = None
        self.views: Optional[ModelViews] = None
        self.saved: Optional[SaveRecord] = None
        self.summary: Optional[Summary] = None
        self.notes: List[str] = []

    def step(self, record: StepRecord) -> None:
        self.last_step = record
        figures = {
            "loss": record.loss,
            "accuracy": record.accuracy,
            "learning_rate": record.learning_rate,
            "images_per_second": None if record.warming_up else record.images_per_second,
            "data_wait": None if record.warming_up else data_wait_share(record),
            "grad_norm": record.grad_norm,
            "loss_scale": record.loss_scale,
        }
        for name, value in figures.items():
            self.steps.setdefault(name, Curve()).add(record.step, value)

    def validated(self, record: ValidationRecord) -> None:
        self.last_validation = record
        if record.is_best:
            self.best = record
        for name, value in {"loss": record.loss, **record.scores()}.items():
            self._score(name, record.averaged, record.step, value)

    def found(self, findings: Findings) -> None:
        self.findings = findings
        auc = mean_auc(findings)
        told = self.last_validation is not None and "auc" in self.last_validation.scores()
        if auc is not None and not told:
            self._score("auc", findings.averaged, findings.step, auc)

    def note(self, text: str) -> None:
        if len(self.notes) < MOST_NOTES:
            self.notes.append(text)

    def recall(self, path: Path, resumed_step: int) -> None:
        """Takes in what metrics.jsonl holds of the steps before a resumed run."""
        if not resumed_step or not path.exists():
            return
        for line in kept_lines(path, resumed_step):
            event = json.loads(line)
            if event.get("event") == "step":
                self.step(record_of(StepRecord, event))
            elif event.get("event") == "validation":
                self.validated(record_of(ValidationRecord, event))

    def _score(self, name: str, averaged: bool, step: int, value: float) -> None:
        self.scores.setdefault((name, averaged), Curve()).add(step, value)


def mean_auc(findings: Findings) -> Optional[float]:
    """Over the classes that have one."""
    known = [result.auc for result in findings.classes if result.auc is not None]
    return sum(known) / len(known) if known else None


def record_of(kind: Type[Record], event: Dict[str, Any]) -> Record:
    """A line of metrics.jsonl as the record that it was. What was not finite is null there."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    values = {name: value for name, value in event.items() if name in known}
    if event.get("nonfinite"):
        values = {name: math.nan if value is None else value for name, value in values.items()}
    return kind(**values)
