from __future__ import annotations

import json
import math

from reporting.jsonl import JsonlReporter, truncate_after


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(path, steps, record, resumed_step=0):
    reporter = JsonlReporter(path, resumed_step)
    for step in steps:
        reporter.step(record(step=step))
    reporter.close()


def test_a_step_is_an_object_with_every_field(step_record, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    reporter = JsonlReporter(path)
    reporter.step(step_record(grad_norm=2.5))
    (line,) = read(path)  # before close: written out at once
    reporter.close()
    assert line.pop("time") > 1e9
    assert line == {
        "event": "step",
        "step": 55,
        "num_steps": 440,
        "epoch": 1.25,
        "num_epochs": 40.0,
        "learning_rate": 0.001234,
        "loss": 1.234,
        "accuracy": 0.912,
        "images_per_second": 123.4,
        "step_seconds": 0.123,
        "data_wait_seconds": 0.0015,
        "grad_norm": 2.5,
        "loss_scale": 1.0,
        "warming_up": False,
    }


def test_a_validation_is_an_object_of_its_own(validation_record, tmp_path):
    path = tmp_path / "metrics.jsonl"
    reporter = JsonlReporter(path)
    reporter.validated(validation_record(is_best=True))
    reporter.close()
    (line,) = read(path)
    assert (line["event"], line["step"], line["top1"], line["is_best"]) == ("validation", 55, 0.990123, True)


def test_non_finite_figures_become_null_and_are_marked(step_record, tmp_path):
    path = tmp_path / "metrics.jsonl"
    reporter = JsonlReporter(path)
    reporter.step(step_record(loss=math.nan, grad_norm=math.inf))
    reporter.step(step_record())
    reporter.close()
    broken, sound = read(path)
    assert (broken["loss"], broken["grad_norm"], broken["nonfinite"], broken["accuracy"]) == (None, None, True, 0.912)
    assert "nonfinite" not in sound


def test_resumed_run_drops_the_steps_that_it_repeats(step_record, tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1, 2, 3, 4], step_record)
    write_steps(path, [3, 4, 5], step_record, resumed_step=2)
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4, 5]


def test_truncation_keeps_validations_up_to_the_step(step_record, validation_record, tmp_path):
    path = tmp_path / "metrics.jsonl"
    reporter = JsonlReporter(path)
    for step in (1, 2):
        reporter.step(step_record(step=step))
        reporter.validated(validation_record(step=step))
    reporter.close()
    truncate_after(path, 1)
    assert [(line["event"], line["step"]) for line in read(path)] == [("step", 1), ("validation", 1)]


def test_truncation_drops_a_line_cut_short_by_a_crash(step_record, tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, [1], step_record)
    path.write_text(path.read_text() + '{"event": "step", "st')
    truncate_after(path, 10)
    assert [line["step"] for line in read(path)] == [1]


def test_fresh_run_keeps_the_earlier_run_under_another_name(step_record, tmp_path):
    path = tmp_path / "metrics.jsonl"
    for steps in ([1, 2, 3], [1, 2], [1]):
        write_steps(path, steps, step_record)
    lengths = {file.name: len(read(file)) for file in tmp_path.iterdir()}
    assert lengths == {"metrics.jsonl": 1, "metrics.1.jsonl": 3, "metrics.2.jsonl": 2}
