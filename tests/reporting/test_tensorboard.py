"""Event files are read back with TensorBoard's own reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reporting.tensorboard import TensorBoardReporter

ROOT = Path(__file__).resolve().parents[2]


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_back_steps_and_validations(step_record, validation_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.step(step_record(step=1, loss=2.5))
    reporter.step(step_record(step=2, loss=1.5))
    reporter.validated(validation_record(step=2))
    reporter.close()
    assert scalars(tmp_path, "train/loss") == [(1, 2.5), (2, 1.5)]
    assert scalars(tmp_path, "validation/top1") == [(2, pytest.approx(0.990123))]


def test_tensorboard_has_the_area_of_several_labels(validation_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.validated(validation_record(step=2, multi_label=True, auc=0.75))
    reporter.close()
    assert scalars(tmp_path, "validation/auc") == [(2, 0.75)]


def test_gradient_norm_is_left_out_where_it_was_not_computed(step_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.step(step_record(grad_norm=None))
    reporter.close()
    assert "train/grad_norm" not in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]


def test_resumed_run_hides_the_steps_that_it_repeats(step_record, tmp_path):
    interrupted = TensorBoardReporter(tmp_path)
    for step in (1, 2, 3, 4):
        interrupted.step(step_record(step=step, loss=1.0))
    interrupted.close()
    resumed = TensorBoardReporter(tmp_path, resumed_step=2)
    resumed.step(step_record(step=3, loss=2.0))
    resumed.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_validation_is_on_disk_at_once(validation_record, tmp_path):
    reporter = TensorBoardReporter(tmp_path)
    reporter.validated(validation_record(step=7))
    assert [step for step, _ in scalars(tmp_path, "validation/loss")] == [7]
    reporter.close()


def test_writing_events_imports_no_torch(tmp_path):
    program = f"""
import sys
from pathlib import Path
from reporting.tensorboard import TensorBoardReporter
TensorBoardReporter(Path({str(tmp_path)!r})).close()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
