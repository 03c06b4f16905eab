"""Weights & Biases, where the config asks for it. Offline or online is W&B's own setting (WANDB_MODE)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from reporting import pictures
from reporting.background import Background
from reporting.base import Reporter
from reporting.lines import second_score
from reporting.records import Findings, ModelViews, RunRecord, StepRecord, Summary, ValidationRecord

START_SECONDS = 30.0  # how long W&B may look for its server, or for an answer at its prompt for a key
FINISH_SECONDS = 60.0  # how long it may send what is left when the run ends; all of it stays on the disk
LIMIT_SECONDS = 90.0  # where W&B, in whatever version, does not keep to these

Captioned = List[Tuple[np.ndarray, str]]


class WandbReporter(Reporter):
    """One W&B run, with the config's values as `settings` and its files below `folder`. A run that is resumed goes on in the W&B
    run that it had. `note` is told where the run can be seen.

    Only the start and the end wait for W&B. Raises ImportError where the package is missing, and whatever W&B raises where it
    cannot start; what it raises later comes out of a later call.
    """

    def __init__(
        self,
        project: str,
        name: Optional[str],
        settings: Mapping[str, Any],
        folder: Optional[str],
        resumes: bool = False,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        import wandb

        self._wandb, self._note = wandb, note
        self._run: Any = None
        self._class_names: Tuple[str, ...] = ()
        self._calls = Background("W&B", LIMIT_SECONDS)
        start = {
            "project": project,
            "name": name,
            "config": dict(settings),
            "dir": folder,
            "id": _earlier_id(Path(folder)) if resumes and folder else None,
            "resume": "allow",
            "settings": _own_settings(wandb.Settings),
        }
        self._calls.call(lambda: self._start(start))
        self._calls.wait()

    def began(self, record: RunRecord) -> None:
        self._class_names = record.class_names

    def step(self, record: StepRecord) -> None:
        scalars = {
            "LR": record.learning_rate,
            "Throughput": record.images_per_second,
            "Loss": record.loss,
            "Accuracy": record.accuracy,
            "Epoch": record.epoch,
            "Loss Scale": record.loss_scale,
        }
        self._log(record.step, scalars)

    def validated(self, record: ValidationRecord) -> None:
        scalars = {
            "Valid Loss": record.loss,
            f"Valid {second_score(record)}": record.top5,
            "Total Accuracy": record.top1,
            "Number of samples": record.num_samples,
            "Valid AUC": record.scores().get("auc"),
        }
        self._log(record.step, _of(record.averaged, scalars))

    def found(self, findings: Findings) -> None:
        self._log(findings.step, _of(findings.averaged, {f"Valid AUC {one.name}": one.auc for one in findings.classes}))
        images: Dict[str, Captioned] = {}
        if findings.confusion is not None:
            drawn = pictures.confusion_picture(findings.confusion, self._class_names)
            images["Confusion"] = [(drawn, "rows: labels, columns: answers")]
        mistakes = [one for one in findings.mistakes if one.picture is not None]
        images["Mistakes"] = [
            (one.picture, pictures.mistake_caption(one)) for one in mistakes if one.picture is not None
        ]
        self._log_images(findings.step, _of(findings.averaged, images))

    def viewed(self, views: ModelViews) -> None:
        attention = [(pictures.attention_pair(view), pictures.attention_caption(view)) for view in views.attentions]
        images: Dict[str, Captioned] = {"Attention": attention}
        if views.position_similarity is not None:
            drawn = pictures.similarity_picture(views.position_similarity)
            images["Position Similarity"] = [(drawn, "a map for each position, at its place")]
        self._log_images(views.step, images)

    def finished(self, summary: Summary) -> None:
        known = {
            "Best Accuracy": summary.best_top1,
            "Best AUC": summary.best_auc,
            "Mean Throughput": summary.images_per_second,
        }
        self._calls.call(
            lambda: self._run.summary.update({name: value for name, value in known.items() if value is not None})
        )

    def close(self) -> None:
        self._calls.call(lambda: self._run.finish())
        self._calls.wait()
        self._note(f"  W&B         {_place_of(self._run)}")

    def _start(self, arguments: Mapping[str, Any]) -> None:
        self._run = self._wandb.init(**arguments)

    def _log(self, step: int, scalars: Mapping[str, Optional[float]]) -> None:
        known = {name: value for name, value in scalars.items() if value is not None}
        if known:
            self._calls.call(lambda: self._run.log(known, step=step))

    def _log_images(self, step: int, images: Mapping[str, Captioned]) -> None:
        self._calls.call(lambda: self._send_images(step, images))

    def _send_images(self, step: int, images: Mapping[str, Captioned]) -> None:
        made = {
            name: [self._wandb.Image(picture, caption=caption) for picture, caption in captioned]
            for name, captioned in images.items()
            if captioned
        }
        if made:
            self._run.log(made, step=step)


def _own_settings(settings: Any) -> Any:
    """W&B's settings for our runs, as far as its version has them: older ones can only be told not to capture the console, which
    would fight with the progress bar."""
    wanted = {"console": "off", "quiet": True, "init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS}
    known = getattr(settings, "model_fields", ("console",))
    return settings(**{name: value for name, value in wanted.items() if name in known})


def _of(averaged: bool, values: Mapping[str, Any]) -> Dict[str, Any]:
    """The names under which figures of the averaged weights are charted beside the others."""
    return {f"{'Averaged ' if averaged else ''}{name}": value for name, value in values.items()}


def _place_of(run: Any) -> str:
    """Where a run can be seen, or how it gets there."""
    if getattr(run, "offline", False):
        return f"offline; to send it: wandb sync {shlex.quote(str(Path(run.dir).parent))}"
    return str(run.url)


def _earlier_id(folder: Path) -> Optional[str]:
    """Of the newest W&B run in a run folder, whose files lie in `wandb/run-<date>_<time>-<id>` or `wandb/offline-run-…`."""
    found = [path.name.split("run-", 1)[1] for path in (folder / "wandb").glob("*run-*-*") if path.is_dir()]
    return max(found).split("-", 1)[1] if found else None
