"""Several runs beside each other: which keys differ, and what came of each."""

from __future__ import annotations

import json
from typing import Any, List, Mapping, Sequence, Tuple

from config import KEYS
from reporting.lines import duration, rate
from reporting.markup import number, percent
from reporting.runs import RecordedRun
from reporting.tables import table

OF_THE_RUN = (
    "checkpoint_output_dir",
    "run_name",
    "wandb_run_name",
    "quiet",
)  # they make no difference to what a run does
SCORES = {
    "auc": "AUC",
    "top1": "top-1",
    "labels_right": "labels right",
}  # what a run is judged by, the first that it has
MISSING = "-"
LONGEST = 60  # letters of a value on the console
HEADERS = ("run", "steps", "best", "at step", "train loss", "valid loss", "images/s", "time")


def differing_keys(runs: Sequence[RecordedRun]) -> List[Tuple[str, List[str]]]:
    """Each key with its value in every run, for keys that differ between runs whose keys are known.

    A run's file leaves out keys that it does not use and that have their default: they count as the default.
    """
    known = [run.settings for run in runs if run.settings is not None]
    names = [*KEYS, *sorted({name for settings in known for name in settings if name not in KEYS})]
    rows = []
    for name in names:
        values = [_value(run.settings, name) for run in runs]
        if name not in OF_THE_RUN and len({value for value in values if value != MISSING}) > 1:
            rows.append((name, values))
    return rows


def _value(settings: Any, name: str) -> str:
    """As in a config, text without quotes."""
    if settings is None:
        return MISSING
    value = settings.get(name, KEYS[name].default if name in KEYS else None)
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def final_figures(run: RecordedRun) -> List[str]:
    """A row under HEADERS."""
    step, validation = run.story.last_step, run.story.last_validation
    seconds = run.training_seconds + run.validation_seconds
    speed = run.images_per_second
    return [
        run.name,
        f"{step.step:,} of {step.num_steps:,}" if step is not None else "0",
        best_score(run),
        f"{run.best.step:,}" if run.best is not None else MISSING,
        number(step.loss) if step is not None else MISSING,
        number(validation.loss) if validation is not None else MISSING,
        rate(speed) if speed is not None else MISSING,
        duration(seconds) if seconds else MISSING,
    ]


def best_score(run: RecordedRun) -> str:
    """Of the best validation, by the score that it was judged by: "98.61 % top-1", "0.8123 AUC"."""
    if run.best is None:
        return MISSING
    scores = run.best.scores()
    name = next(name for name in SCORES if name in scores)
    return f"{scores[name]:.4f} AUC" if name == "auc" else f"{percent(scores[name])} {SCORES[name]}"


def text(runs: Sequence[RecordedRun]) -> str:
    """The comparison for the console."""
    parts = [table(HEADERS, [final_figures(run) for run in runs])]
    rows = differing_keys(runs)
    if rows:
        names = ["key", *(run.name for run in runs)]
        parts.append(table(names, [[name, *map(_cut, values)] for name, values in rows]))
    else:
        parts.append("No key differs.")
    parts += [f"{run.name}: {note}" for run in runs for note in run.notes]
    return "\n\n".join(parts[:2]) + "".join(f"\n{note}" for note in parts[2:])


def _cut(value: str) -> str:
    plain = "".join(letter if letter.isprintable() else "?" for letter in value)
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 2] + ".."


def is_same_length(runs: Sequence[RecordedRun]) -> bool:
    """Whether an epoch has the same number of steps in all runs."""
    steps = [run.story.last_step for run in runs if run.story.last_step is not None]
    lengths: Mapping[int, None] = dict.fromkeys(round(step.step / step.epoch) for step in steps if step.epoch)
    return len(lengths) <= 1
