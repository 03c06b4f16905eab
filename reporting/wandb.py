"""Weights & Biases, where the config asks for it. Offline or online is W&B's own setting (WANDB_MODE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional

from reporting.base import Reporter
from reporting.lines import second_score
from reporting.records import StepRecord, Summary, ValidationRecord


class WandbReporter(Reporter):
    """One W&B run, with the config's values as `settings` and its files below `folder`. A run that is resumed goes on in the W&B
    run that it had.

    Raises ImportError where the package is missing, and whatever W&B raises where it cannot start.
    """

    def __init__(
        self,
        project: str,
        name: Optional[str],
        settings: Mapping[str, Any],
        folder: Optional[str],
        resumes: bool = False,
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=name,
            config=dict(settings),
            dir=folder,
            id=_earlier_id(Path(folder)) if resumes and folder else None,
            resume="allow",
            settings=wandb.Settings(console="off"),  # capturing the console would fight with the progress bar
        )

    def step(self, record: StepRecord) -> None:
        scalars = {
            "LR": record.learning_rate,
            "Throughput": record.images_per_second,
            "Loss": record.loss,
            "Accuracy": record.accuracy,
            "Epoch": record.epoch,
            "Loss Scale": record.loss_scale,
        }
        self._run.log(scalars, step=record.step)

    def validated(self, record: ValidationRecord) -> None:
        scalars = {
            "Valid Loss": record.loss,
            f"Valid {second_score(record)}": record.top5,
            "Total Accuracy": record.top1,
            "Number of samples": record.num_samples,
        }
        if record.auc is not None:
            scalars["Valid AUC"] = record.auc
        whose = "Averaged " if record.averaged else ""
        self._run.log({whose + name: value for name, value in scalars.items()}, step=record.step)

    def finished(self, summary: Summary) -> None:
        if summary.best_top1 is not None:
            self._run.summary["Best Accuracy"] = summary.best_top1
        if summary.best_auc is not None:
            self._run.summary["Best AUC"] = summary.best_auc
        if summary.images_per_second is not None:
            self._run.summary["Mean Throughput"] = summary.images_per_second

    def close(self) -> None:
        self._run.finish()


def _earlier_id(folder: Path) -> Optional[str]:
    """Of the newest W&B run in a run folder, whose files lie in `wandb/run-<date>_<time>-<id>` or `wandb/offline-run-…`."""
    found = [path.name.split("run-", 1)[1] for path in (folder / "wandb").glob("*run-*-*") if path.is_dir()]
    return max(found).split("-", 1)[1] if found else None
