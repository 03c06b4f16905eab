"""What changes from step to step: loss, learning rate, scores, speed, gradients."""

from __future__ import annotations

from typing import Callable, List

from reporting.charts import Line, line_chart
from reporting.markup import percent
from reporting.page.heading import SCORE_NAMES
from reporting.story import Story

TRAINING, VALIDATION, AVERAGED = 0, 1, 2  # styles of lines
FEW_CLASSES = 5  # among so many, the right one is always among the first five
Form = Callable[[float], str]


def learning(story: Story) -> str:
    charts = [
        line_chart("loss", "Loss", _steps(story, "loss") + _scores(story, "loss")),
        _score_chart(story, "auc", lambda value: f"{value:.4f}"),
        line_chart("accuracy", "Accuracy", _steps(story, "accuracy") + _accuracy(story), percent, most=1.0),
        *(_score_chart(story, name, percent) for name in _further(story)),
        line_chart("learning-rate", "Learning rate", _steps(story, "learning_rate")),
    ]
    return _grid(charts)


def effort(story: Story) -> str:
    """Speed, data wait and gradients."""
    charts = [
        line_chart("throughput", "Images a second", _steps(story, "images_per_second"), from_zero=True),
        line_chart(
            "data-wait",
            "Share of a step that went by waiting for data",
            _steps(story, "data_wait"),
            percent,
            from_zero=True,
            most=1.0,
        ),
        line_chart("grad-norm", "Gradient norm, before clipping", _steps(story, "grad_norm"), is_log=True),
    ]
    if any(point.low != 1 or point.high != 1 for line in _steps(story, "loss_scale") for point in line.points):
        charts.append(line_chart("loss-scale", "Loss scale", _steps(story, "loss_scale"), is_log=True))
    hint = '<p class="hint">The first steps\' speed is left out: memory is allocated and code compiled in them.</p>'
    return hint + _grid(charts) if any(charts) else ""


def _accuracy(story: Story) -> List[Line]:
    return _scores(story, "top1") + _scores(story, "labels_right")


def _further(story: Story) -> List[str]:
    """Scores with a chart of their own."""
    names = dict.fromkeys(name for name, _ in story.scores)
    few = story.run is not None and 0 < len(story.run.class_names) <= FEW_CLASSES
    told = {"loss", "auc", "top1", "labels_right", *(["top5"] if few else [])}
    return [name for name in names if name not in told]


def _score_chart(story: Story, name: str, form: Form) -> str:
    title = SCORE_NAMES.get(name, name.replace("_", " "))
    identity = "score-" + "".join(letter if letter.isalnum() else "-" for letter in name)
    steps = (1.0, float(story.last_step.step)) if story.last_step is not None else None
    return line_chart(identity, title[:1].upper() + title[1:], _scores(story, name), form, most=1.0, steps=steps)


def _steps(story: Story, name: str) -> List[Line]:
    return [Line("training", story.steps[name].points(), TRAINING)] if name in story.steps else []


def _scores(story: Story, name: str) -> List[Line]:
    lines = []
    for averaged, words, style in ((False, "validation", VALIDATION), (True, "validation, averaged weights", AVERAGED)):
        if (name, averaged) in story.scores:
            lines.append(Line(words, story.scores[name, averaged].points(), style))
    return lines


def _grid(charts: List[str]) -> str:
    return f'<div class="grid-of-charts">{"".join(charts)}</div>' if any(charts) else ""
