"""When the page is written, what it may cost, and what a resumed run remembers."""

from __future__ import annotations

import math

import pytest

from reporting.build import build_reporters
from reporting.jsonl import JsonlReporter
from reporting.records import Findings, Summary
from reporting.report import FILE_NAME, MOST_OF_THE_TIME, ReportReporter
from tests.reporting.demo import run_record, step_record, validation_record
from tests.reporting.html_check import Page


class Clock:
    """Time that passes as a test says: `tick` seconds at every look, and `wait`."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def page_text(folder) -> str:
    return Page((folder / FILE_NAME).read_text(encoding="utf-8")).text


def test_the_page_is_there_from_the_beginning_and_follows_validations(tmp_path):
    clock = Clock()
    reporter = ReportReporter(tmp_path, clock=clock)
    reporter.began(run_record())
    assert "before its first step" in page_text(tmp_path)
    clock.wait(1000)
    reporter.step(step_record(1))
    assert "before its first step" in page_text(tmp_path)  # no news that is worth a writing
    reporter.validated(validation_record(1))
    assert "step 1 of 440" in page_text(tmp_path)
    reporter.step(step_record(2))
    reporter.finished(Summary(2, 1.0))
    assert "Done" in page_text(tmp_path) and "step 2 of 440" in page_text(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_news_that_came_too_soon_are_written_as_soon_as_the_share_allows(tmp_path):
    clock = Clock()
    reporter = ReportReporter(tmp_path, clock=clock)
    clock.wait(1.0)
    reporter.step(step_record(1))
    reporter.validated(validation_record(1))
    assert not (tmp_path / FILE_NAME).exists()
    clock.wait(100)
    reporter.step(step_record(2))
    assert "step 2 of 440" in page_text(tmp_path)


def test_a_dear_page_is_written_seldom(tmp_path, monkeypatch):
    clock = Clock()
    writings = []

    def render(*story):
        clock.wait(2.0)
        writings.append(clock.now)
        return "<!doctype html>"

    monkeypatch.setattr("reporting.report.render", render)
    reporter = ReportReporter(tmp_path, clock=clock)
    for step in range(1, 2001):
        clock.wait(1.0)
        reporter.validated(validation_record(step))
        assert len(writings) < 2 or reporter.seconds_spent <= MOST_OF_THE_TIME * clock.now
    assert 4 <= len(writings) <= 6
    reporter.finished(Summary(2000, 2000.0))
    assert len(writings) <= 7
    before = len(writings)
    reporter.close()
    assert len(writings) == before


def test_a_run_that_breaks_says_so(tmp_path):
    reporter = ReportReporter(tmp_path)
    reporter.began(run_record())
    reporter.step(step_record(1))
    reporter.close()
    assert "Ended by an error" in page_text(tmp_path)


def test_a_resumed_run_remembers_its_curves_up_to_the_step(tmp_path):
    metrics = JsonlReporter(tmp_path / "metrics.jsonl")
    for step in range(1, 31):
        metrics.step(step_record(step, loss=math.nan if step == 5 else step / 10))
        if step % 10 == 0:
            metrics.validated(validation_record(step, loss=step / 100))
    metrics.close()
    reporter = ReportReporter(tmp_path, tmp_path / "metrics.jsonl", 20)
    reporter.began(run_record(resumed_step=20))
    reporter.step(step_record(21, loss=7.5))
    reporter.finished(Summary(21, 1.0))
    labels = Page((tmp_path / FILE_NAME).read_text(encoding="utf-8")).all("aria-label")
    (words,) = [label for label in labels if label.startswith("Loss by step")]
    assert "training: 0.1 at step 1, 7.5 at step 21, lowest 0.1, highest 7.5, 1 not finite." in words
    assert "validation: 0.1 at step 10, 0.2 at step 20" in words


def test_a_fresh_run_remembers_nothing(tmp_path):
    metrics = JsonlReporter(tmp_path / "metrics.jsonl")
    metrics.step(step_record(1))
    metrics.close()
    reporter = ReportReporter(tmp_path, tmp_path / "metrics.jsonl", 0)
    reporter.finished(Summary(0, 1.0))
    assert "before its first step" in page_text(tmp_path)


class Settings:
    wandb = False
    quiet = False
    report = True

    def __init__(self, report: bool) -> None:
        self.report = report


@pytest.mark.parametrize("report", [True, False])
def test_the_key_decides_whether_there_is_a_page(tmp_path, report, capsys):
    for reporter in build_reporters(Settings(report), str(tmp_path), 2):
        reporter.began(run_record())
        reporter.finished(Summary(2, 1.0))
        reporter.close()
    assert (tmp_path / FILE_NAME).exists() == report


def test_a_folder_that_cannot_be_written_costs_one_note_not_the_run(tmp_path, capsys):
    for reporter in build_reporters(Settings(True), str(tmp_path / "run"), 2):
        (tmp_path / "run" / FILE_NAME).mkdir(parents=True, exist_ok=True)
        reporter.began(run_record())
        reporter.found(Findings(1))
        reporter.finished(Summary(2, 1.0))
        reporter.close()
    assert capsys.readouterr().out.count("note: no report.html from here on: ") == 1
