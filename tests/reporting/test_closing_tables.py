"""The tables at the end of a run: its epochs, and its classes."""

from __future__ import annotations

import io
import math
import re

from reporting.class_table import class_table
from reporting.console import ConsoleReporter
from reporting.epochs import MOST_ROWS, EpochTable
from reporting.records import ClassResult, Findings, Summary
from tests.reporting.test_lines import BENCHMARK_REGEXPS, TEST_REGEXPS

CLASSES = (
    ClassResult("Edema", 50, 350, auc=0.75, threshold=0.0123456, sensitivity=0.9, specificity=0.5),
    ClassResult("a\x1b[31m\nb", 0, 400),
    ClassResult("Mass", 7, 393, auc=0.85, threshold=0.5, sensitivity=1.0, specificity=0.25),
)


def test_an_epochs_training_loss_is_the_mean_of_its_steps(step_record, validation_record):
    epochs = EpochTable()
    for epoch in (1, 2):
        for loss in (epoch, epoch + 1.0):
            epochs.step(step_record(loss=loss))
        epochs.validated(validation_record(step=epoch, epoch=epoch, loss=0.25, top1=0.5, auc=0.79164))
    assert epochs.text().splitlines() == [
        "epoch  train loss  eval loss     AUC",
        "-----  ----------  ---------  ------",
        "    1      1.5000     0.2500  0.7916",
        "    2      2.5000     0.2500  0.7916",
    ]


def test_without_an_area_it_is_accuracy_and_of_two_validations_of_a_step_the_second_counts(validation_record):
    epochs = EpochTable()
    assert epochs.text() is None
    epochs.validated(validation_record(step=4, loss=math.nan, top1=0.25))
    epochs.validated(validation_record(step=4, averaged=True, top1=0.75))
    assert [line.split() for line in epochs.text().splitlines()[::2]] == [
        ["epoch", "train", "loss", "eval", "loss", "accuracy"],
        ["1.25", "-", "0.1230", "0.7500"],
    ]


def test_of_many_epochs_the_last_are_shown(validation_record):
    epochs = EpochTable()
    for step in range(1, 100):
        epochs.validated(validation_record(step=step, epoch=float(step)))
    rows = epochs.text().splitlines()[2:]
    assert len(rows) == MOST_ROWS
    assert rows[-1].split()[0] == "99"


def test_a_class_without_a_curve_has_no_figures_and_names_cannot_write_on_the_terminal():
    assert class_table(CLASSES).splitlines() == [
        "class        AUC  positives  threshold  sensitivity  specificity",
        "--------  ------  ---------  ---------  -----------  -----------",
        "Edema     0.7500         50     0.0123        0.900        0.500",
        "a?[31m?b       -          0          -            -            -",
        "Mass      0.8500          7        0.5        1.000        0.250",
        "mean      0.8000",
    ]


def test_a_run_ends_with_both_tables_those_of_the_best_step_and_no_log_parser_stumbles(validation_record):
    stream = io.StringIO()
    console = ConsoleReporter(4, stream=stream)
    console.validated(validation_record(step=2, is_best=True, multi_label=True, auc=0.8))
    console.found(Findings(step=2, classes=CLASSES))
    console.validated(validation_record(step=4, multi_label=True, auc=0.7))
    console.found(Findings(step=4, classes=CLASSES[:1]))
    before = len(stream.getvalue())
    console.finished(Summary(steps=4, seconds=1.0))
    closing = stream.getvalue()[before:]
    assert "Classes at step 2\n" in closing
    assert class_table(CLASSES) in closing
    assert not [regexp for regexp in (*BENCHMARK_REGEXPS, *TEST_REGEXPS) if re.search(regexp, closing)]
