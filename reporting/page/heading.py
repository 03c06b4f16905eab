"""The top of the page: which run, how it stands, what came of it."""

from __future__ import annotations

import time
from typing import Iterator, List, Tuple

from reporting.lines import duration, rate
from reporting.markup import escaped, number, percent
from reporting.records import Summary
from reporting.story import Story, mean_auc

STATES = {"running": "Running", "done": "Done", "stopped": "Stopped", "failed": "Ended by an error"}
SCORE_NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "labels_right": "labels right",
    "images_right": "images with all labels right",
    "auc": "mean ROC AUC",
}


def title(story: Story, state: str) -> str:
    return f"{run_name(story)}: {STATES[state].lower()}"


def run_name(story: Story) -> str:
    return story.run.name if story.run is not None else "A run"


def head(story: Story, state: str, now: float) -> str:
    """Title, state and the result in one line."""
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    machine = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now))
    when = "as of" if state == "running" else "at"
    reason = (
        f" ({escaped(story.summary.interrupted)})" if story.summary is not None and story.summary.interrupted else ""
    )
    state_line = (
        f'<p><strong class="state {state if state != "failed" else "stopped"}">{STATES[state]}{reason}</strong> '
        f'{_progress(story)} {when} <time datetime="{machine}">{written}</time></p>'
    )
    return f'<h1>{escaped(run_name(story))}</h1>{_about(story)}{state_line}{_watch(state)}<p class="result">{result(story)}</p>'


def _about(story: Story) -> str:
    run = story.run
    if run is None:
        return ""
    validation = f", {run.num_validation:,} validation images" if run.num_validation else ", no validation set"
    words = f"{run.command}, runtime {run.runtime}: {run.num_parameters:,} parameters, "
    words += f"{run.num_train:,} training images{validation}"
    return f'<p class="about">{escaped(words, None)}</p>'


def _progress(story: Story) -> str:
    record = story.last_step
    if record is None:
        return "before its first step,"
    return f"step {record.step:,} of {record.num_steps:,}, epoch {record.epoch:.2f} of {record.num_epochs:.2f},"


def _watch(state: str) -> str:
    if state != "running":
        return ""
    return (
        '<p class="note pause"><label><input type="checkbox" id="pause"> do not reload this page every half minute</label>. '
        "Where the time above is long past, the run was killed.</p>"
    )


def result(story: Story) -> str:
    """What came of the run, in one line of HTML."""
    record = story.best or story.last_validation
    if record is None:
        return (
            f"Training loss {number(story.last_step.loss)}." if story.last_step is not None else "Nothing to show yet."
        )
    name, value = next(iter(record.scores().items()))
    parts = [f"{percent(value)} {SCORE_NAMES.get(name, name)}"]
    auc = record.scores().get("auc")
    if auc is None and story.findings is not None and story.findings.step == record.step:
        auc = mean_auc(story.findings)
    if auc is not None:
        parts.insert(0, f"mean ROC AUC {auc:.4f}")
    which = "best" if story.best is not None else "last"
    whose = " of the averaged weights" if record.averaged else ""
    numbers = f"{', '.join(parts)} on {record.num_samples:,} validation images"
    return f"<strong>{numbers}</strong>{whose}: the {which} validation, at step {record.step:,}, with loss {number(record.loss)}."


def tiles(story: Story) -> str:
    """The figures that people look for first."""
    entries = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{beside}</small></dd></div>" for name, value, beside in _tiles(story)
    )
    return f'<dl class="tiles">{entries}</dl>' if entries else ""


def _tiles(story: Story) -> Iterator[Tuple[str, str, str]]:
    summary, validation, step = story.summary, story.last_validation, story.last_step
    if story.findings is not None and (auc := mean_auc(story.findings)) is not None:
        classes = [result for result in story.findings.classes if result.auc is not None]
        yield "mean ROC AUC", f"{auc:.4f}", f"{len(classes)} of {len(story.findings.classes)} classes"
    if validation is not None:
        for name, value in list(validation.scores().items())[:1]:
            best = f"best {percent(story.best.scores()[name])}" if story.best is not None else ""
            yield SCORE_NAMES.get(name, name), percent(value), best
        yield "validation loss", number(validation.loss), f"step {validation.step:,}"
    if step is not None:
        yield "training loss", number(step.loss), f"step {step.step:,}"
    yield from _speeds(story)
    if summary is not None:
        yield "time", duration(summary.seconds), _steps_taken(story, summary)


def _steps_taken(story: Story, summary: Summary) -> str:
    """Those of the time beside them: a resumed run's time begins where it goes on."""
    resumed = story.run.resumed_step if story.run is not None else 0
    count = summary.steps - resumed
    return f"{count:,} step{'s' * (count != 1)}" + (f" from step {resumed:,} on" if resumed else "")


def _speeds(story: Story) -> List[Tuple[str, str, str]]:
    summary = story.summary
    if summary is not None and summary.images_per_second is not None:
        wait = f"{percent(summary.data_wait_share)} waiting for data" if summary.data_wait_share is not None else ""
        return [("images a second", rate(summary.images_per_second), wait)]
    points = story.steps["images_per_second"].points(1) if "images_per_second" in story.steps else []
    return [("images a second", rate(points[0].mean), "so far")] if points and points[0].finite else []
