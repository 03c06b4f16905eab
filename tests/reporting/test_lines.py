"""The regular expressions are those of the public PopTorch ViT app's benchmark specs and tests, letter for letter."""

from __future__ import annotations

import math
import re

import pytest

from reporting.lines import duration, step_line, summary_lines, validation_line
from reporting.records import Summary

BENCHMARK_REGEXPS = (r"throughput: *(.*?) samples\/sec", r"loss: *(\d*\.\d*)", r"Valid Accuracy: *(\d+\.\d+)")
TEST_REGEXPS = (r"loss:\s+([\d\.]+)", r"accuracy:\s+([\d\.]+)")


@pytest.mark.parametrize(
    ("regexp", "value"),
    [
        (r"throughput: *(.*?) samples\/sec", "123.4"),
        (r"loss: *(\d*\.\d*)", "1.234"),
        (r"loss:\s+([\d\.]+)", "1.234"),
        (r"accuracy:\s+([\d\.]+)", "0.912"),
    ],
)
def test_step_line_matches_known_regular_expressions(step_record, regexp, value):
    match = re.search(regexp, step_line(step_record()))
    assert match is not None
    assert match.group(1) == value


@pytest.mark.parametrize(("step", "num_steps", "text"), [(149, 150, "Step: 149/"), (4, 5, "Step: 4/")])
def test_step_before_the_last_is_found_by_its_number(step_record, step, num_steps, text):
    assert text in step_line(step_record(step=step, num_steps=num_steps))


def test_step_line_has_every_field_in_the_known_order(step_record):
    assert step_line(step_record()) == (
        "Epoch: 1.25/40.00 Step: 55/440 Lr: 0.001234 loss: 1.234 accuracy: 0.912 throughput: 123.4 samples/sec"
        " Mean step duration: 0.123 seconds Mean data consumption ratio: 0.012"
    )


def test_validation_line_gives_its_accuracy_to_known_regular_expressions(validation_record):
    line = validation_line(validation_record())
    assert re.search(r"Valid Accuracy: *(\d+\.\d+)", line).group(1) == "0.99012"
    assert line == "Valid Loss: 0.123 Valid Accuracy: 0.99012 Top5: 0.99900 (360 samples, 0.4 s)"


def test_only_the_best_validation_says_so(validation_record):
    assert validation_line(validation_record(is_best=True)).endswith("(360 samples, 0.4 s, best so far)")


@pytest.mark.parametrize("regexp", [r"throughput: *(.*?) samples\/sec", r"loss: *(\d*\.\d*)", *TEST_REGEXPS])
def test_validation_line_is_not_taken_for_a_step(validation_record, regexp):
    assert re.search(regexp, validation_line(validation_record())) is None


def test_non_finite_figures_print_as_such(step_record):
    line = step_line(step_record(loss=math.nan, accuracy=math.inf))
    assert " loss: nan accuracy: inf " in line


def test_small_learning_rates_keep_their_digits(step_record):
    assert " Lr: 1.234e-06 " in step_line(step_record(learning_rate=1.234e-6))
    assert " Lr: 0.000000 " in step_line(step_record(learning_rate=0.0))


@pytest.mark.parametrize(("rate", "text"), [(0.0414, "0.041"), (9.87654, "9.877"), (10.04, "10.0"), (7615.3, "7615.3")])
def test_small_throughputs_keep_their_digits(step_record, rate, text):
    assert f" throughput: {text} samples/sec " in step_line(step_record(images_per_second=rate))


def test_step_without_duration_has_no_data_wait(step_record):
    assert step_line(step_record(step_seconds=0.0, data_wait_seconds=0.0)).endswith("ratio: 0.000")


def test_summary_tells_what_was_reached_where_it_lies_and_what_is_next():
    summary = Summary(
        steps=440,
        seconds=27.31,
        images_per_second=2287.5,
        best_top1=0.98889,
        best_step=396,
        run_folder="runs/digits-1",
        next_command="python validation.py --config digits",
    )
    assert summary_lines(summary) == [
        "Done: 440 steps in 27.3 s",
        "  throughput  2,288 images/s, mean without the first steps",
        "  best top-1  98.89 % at step 396",
        "  run folder  runs/digits-1",
        "  next        python validation.py --config digits",
    ]


def test_summary_names_what_lies_in_the_run_folder(tmp_path):
    folder = tmp_path / "a run"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("")
    (folder / "latest").symlink_to("step_440")
    assert summary_lines(Summary(steps=440, seconds=1.0, run_folder=str(folder)))[1:] == [
        f"  run folder  {folder}",
        "  in it       metrics.jsonl, latest (step_440)",
        f"  curves      tensorboard --logdir '{folder}/tensorboard'",
    ]


def test_summary_leaves_out_what_is_not_known():
    assert summary_lines(Summary(steps=3, seconds=1.0)) == ["Done: 3 steps in 1.0 s"]


def test_interrupted_run_says_what_stopped_it():
    assert summary_lines(Summary(steps=3, seconds=1.0, interrupted="Ctrl-C"))[0].startswith("Stopped early (Ctrl-C): 3")


@pytest.mark.parametrize("regexp", [*BENCHMARK_REGEXPS, *TEST_REGEXPS])
def test_summary_adds_no_figure_to_known_regular_expressions(regexp):
    summary = Summary(steps=1, seconds=1.0, images_per_second=2.5, best_top1=0.5, best_step=1)
    assert not [line for line in summary_lines(summary) if re.search(regexp, line)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99.9, "99.9 s"), (119.6, "0:02:00"), (3754, "1:02:34")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_validation_of_several_labels_names_what_it_counts(validation_record):
    line = validation_line(validation_record(multi_label=True))
    assert line == "Valid Loss: 0.123 Valid Accuracy: 0.99012 All labels right: 0.99900 (360 samples, 0.4 s)"
    assert validation_record(multi_label=True).scores() == {"labels_right": 0.990123, "images_right": 0.999}
    closing = summary_lines(Summary(steps=3, seconds=1.0, best_top1=0.5, best_step=2, multi_label=True))
    assert "  best        50.00 % at step 2, of the labels" in closing


@pytest.mark.parametrize(("share", "is_said"), [(None, False), (0.02, False), (0.35, True)])
def test_a_run_that_waited_for_data_says_so_at_its_end(share, is_said):
    lines = summary_lines(Summary(steps=3, seconds=1.0, data_wait_share=share))
    expected = "  data        35 % of the time went by waiting for images: try more --dataloader-workers"
    assert (expected in lines) == is_said


def test_an_area_is_named_where_there_is_one_and_judged_by(validation_record):
    line = validation_line(validation_record(multi_label=True, auc=0.79164))
    assert " All labels right: 0.99900 AUC: 0.79164 (360 samples" in line
    assert re.search(r"Valid Accuracy: *(\d+\.\d+)", line).group(1) == "0.99012"
    assert validation_record(multi_label=True, auc=0.5).scores()["auc"] == 0.5
    summary = Summary(steps=3, seconds=1.0, best_top1=0.5, best_auc=0.79164, best_step=2, multi_label=True)
    assert summary_lines(summary)[1:] == ["  best AUC    0.7916 at step 2"]


def test_the_speed_of_evaluation_stands_beside_that_of_training():
    summary = Summary(steps=3, seconds=1.0, images_per_second=307.7, evaluated_per_second=262.5)
    assert summary_lines(summary)[1:] == [
        "  throughput  308 images/s, mean without the first steps",
        "  evaluation  262 images/s",
    ]
