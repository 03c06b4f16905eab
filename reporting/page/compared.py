"""compare.html: the curves of several runs over each other."""

from __future__ import annotations

from typing import Callable, List, Sequence, Tuple

from reporting.charts import Line, line_chart, sample
from reporting.comparison import HEADERS, differing_keys, final_figures, is_same_length
from reporting.markup import document, escaped, name, number, percent, table
from reporting.page.heading import SCORE_NAMES
from reporting.runs import RecordedRun

Form = Callable[[float], str]
STEPS: Tuple[
    Tuple[str, str, Form, bool], ...
] = (  # a step's figure, its title, how it is written, whether by powers of ten
    ("loss", "Training loss", number, False),
    ("accuracy", "Training accuracy", percent, False),
    ("learning_rate", "Learning rate", number, False),
    ("images_per_second", "Images a second", number, False),
    ("data_wait", "Share of a step that went by waiting for data", percent, False),
    ("grad_norm", "Gradient norm, before clipping", number, True),
    ("loss_scale", "Loss scale", number, True),
)
LONGEST_VALUE = 200


def render(runs: Sequence[RecordedRun]) -> str:
    """The page; file names, keys and values may hold any character."""
    names = ", ".join(run.name for run in runs)
    notes = "".join(f"<li>{name(run.name)}: {escaped(note, None)}</li>" for run in runs for note in run.notes)
    body = (
        '<a class="skip" href="#content">Skip to the figures</a>\n'
        f'<header><h1>{len(runs)} runs compared</h1><p class="about">{escaped(names, 400)}</p></header>\n'
        '<main id="content" tabindex="-1">'
        + _section("figures", "What came of them", f'<div class="card">{_figures(runs)}</div>')
        + (_section("notes", "What is missing", f'<ul class="card">{notes}</ul>') if notes else "")
        + _section("keys", "What they differ in", f'<div class="card">{_keys(runs)}</div>')
        + _section("validation", "Validation", _grid(_validation_charts(runs)))
        + _section("training", "Training", _hint(runs) + _grid(_step_charts(runs)))
        + "</main>"
    )
    return document(f"{len(runs)} runs compared", body)


def _section(identity: str, title: str, content: str) -> str:
    if not content:
        return ""
    head = f'<h2 id="{identity}-title">{title}</h2>'
    return f'<section id="{identity}" aria-labelledby="{identity}-title">{head}{content}</section>\n'


def _figures(runs: Sequence[RecordedRun]) -> str:
    rows = []
    for style, run in enumerate(runs):
        row = final_figures(run)
        rows.append([f"{sample(style)} {name(row[0])}", *map(escaped, row[1:])])
    caption = (
        "Losses are the last ones, images a second a mean without the first steps, time that of training and validation"
    )
    return table(caption, HEADERS, rows, "figures runs")


def _keys(runs: Sequence[RecordedRun]) -> str:
    rows = differing_keys(runs)
    if not rows:
        return "<p>No key differs.</p>"
    headers = ["key", *(f"{sample(style)} {name(run.name)}" for style, run in enumerate(runs))]
    cells = (
        [f"<code>{escaped(key)}</code>", *(name(value, LONGEST_VALUE) for value in values)] for key, values in rows
    )
    return table("Keys that differ", headers, cells, "words runs")


def _hint(runs: Sequence[RecordedRun]) -> str:
    if is_same_length(runs):
        return ""
    return '<p class="hint">An epoch has another number of steps in some of these runs: equal steps are not equal epochs.</p>'


def _step_charts(runs: Sequence[RecordedRun]) -> List[str]:
    charts = []
    for figure, title, form, is_log in STEPS:
        lines = [
            Line(run.name, run.story.steps[figure].points(), style)
            for style, run in enumerate(runs)
            if figure in run.story.steps
        ]
        if figure != "loss_scale" or any(point.high != 1 or point.low != 1 for line in lines for point in line.points):
            charts.append(line_chart(figure.replace("_", "-"), title, lines, form, is_log))
    return charts


def _validation_charts(runs: Sequence[RecordedRun]) -> List[str]:
    scores = dict.fromkeys(key for run in runs for key in run.story.scores)
    charts = []
    for number_of, (score, averaged) in enumerate(scores):
        lines = [
            Line(run.name, run.story.scores[score, averaged].points(), style)
            for style, run in enumerate(runs)
            if (score, averaged) in run.story.scores
        ]
        title = SCORE_NAMES.get(score, score.replace("_", " ")) + (", averaged weights" if averaged else "")
        form: Form = number if score == "loss" else (lambda value: f"{value:.4f}") if score == "auc" else percent
        charts.append(line_chart(f"validation-{number_of}", title[:1].upper() + title[1:], lines, form))
    return charts


def _grid(charts: Sequence[str]) -> str:
    return f'<div class="grid-of-charts">{"".join(charts)}</div>' if any(charts) else ""
