"""Which validation is the best, for images with several labels: by mean AUC where there is one."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, List, Optional

import numpy as np
import pytest

import checkpoint
import training
from checkpoint import Progress
from evaluation import findings
from evaluation.metrics import EvalResult, Outcome
from placement import place
from reporting.base import Reporter
from reporting.records import ClassResult, Findings, Summary, ValidationRecord
from run_setup import prepare_run
from tests.small import small_config
from training import Run, fit
from weights.json_file import seal


def result(top1: float, auc: Optional[float]) -> EvalResult:
    return EvalResult(1.0, top1, 0.0, 10, True, Outcome(classes=(ClassResult("a", 5, 5, auc=auc),)))


# (share of labels right, mean AUC) of each validation, and which are the best so far
COURSES = [
    ([(0.9, 0.6), (0.8, 0.7), (0.95, 0.65)], [True, True, False]),
    ([(0.9, None), (0.8, None), (0.95, None)], [True, False, True]),
    ([(0.9, None), (0.8, 0.5), (0.95, None)], [True, True, False]),
    ([(0.9, 0.7), (0.95, 0.7)], [True, False]),
]


class Listener(Reporter):
    def __init__(self) -> None:
        self.heard: List[Any] = []

    def validated(self, record: ValidationRecord) -> None:
        self.heard.append(record)

    def found(self, findings: Findings) -> None:
        self.heard.append(findings)

    def finished(self, summary: Summary) -> None:
        self.heard.append(summary)


def tiny_run(tmp_path: Path, **keys: Any) -> Run:
    config = small_config(tmp_path, threads_per_process=1, **keys)
    run = prepare_run(config, place(config))
    run.reporters[:] = [Listener()]
    return run


@pytest.mark.parametrize(("course", "best"), COURSES)
def test_the_best_is_chosen_by_the_area_where_there_is_one(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, course: Any, best: Any
) -> None:
    results = iter([result(*scores) for scores in course])
    monkeypatch.setattr(training, "evaluate", lambda *arguments: next(results))
    run = tiny_run(tmp_path, training_steps=len(course))
    fit(run)
    *heard, summary = run.reporters[0].heard  # type: ignore[attr-defined]
    records, found = heard[::2], heard[1::2]
    assert [record.is_best for record in records] == best
    assert [one.step for one in found] == [record.step for record in records]
    at = max(number for number, is_best in enumerate(best) if is_best)
    assert (summary.best_step, summary.best_top1, summary.best_auc) == (at + 1, *course[at])


def test_early_stopping_counts_by_the_area(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([result(top1, auc) for top1, auc in [(0.5, 0.9), (0.6, 0.8), (0.7, 0.7), (0.8, 0.6)]])
    monkeypatch.setattr(training, "evaluate", lambda *arguments: next(results))
    run = tiny_run(tmp_path, training_steps=4, early_stopping=2)
    fit(run)
    assert run.progress.step == 3


def test_pictures_are_no_part_of_the_time_of_a_validation(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "picture_of", lambda *arguments: time.sleep(0.2))
    run = tiny_run(tmp_path, training_steps=1)
    fit(run)
    record, found, summary = run.reporters[0].heard  # type: ignore[attr-defined]
    assert len(found.mistakes) >= 2
    assert isinstance(found.confusion, np.ndarray)
    assert record.seconds < 0.2 * len(found.mistakes)
    assert summary.evaluated_per_second == record.num_samples / record.seconds


def test_a_step_of_before_there_were_areas_goes_on(tmp_path: Any) -> None:
    folder = tmp_path / "run"
    run = tiny_run(tmp_path, checkpoint_output_dir=str(folder))
    fit(run)
    path = folder / "step_3" / "run.json"
    details = checkpoint.read_run_details(path.parent)
    del details["best_auc"]
    path.write_text(json.dumps({**details, "digest": seal(details)}))
    progress = checkpoint.read_progress(path.parent)
    assert progress == Progress(**{**vars(run.progress), "best_auc": None})
    resumed = tiny_run(
        tmp_path, checkpoint_output_dir=str(folder), resume_training_from_checkpoint=True, training_steps=4
    )
    assert fit(resumed) == 0
