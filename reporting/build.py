"""Who listens to a run, by its config."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Optional

from reporting.base import Reporter
from reporting.best_effort import BestEffort
from reporting.console import ConsoleReporter
from reporting.jsonl import JsonlReporter
from reporting.report import FILE_NAME, ReportReporter
from reporting.tensorboard import TensorBoardReporter
from reporting.wandb import WandbReporter

if TYPE_CHECKING:
    from config import Config


def build_reporters(config: Config, run_folder: Optional[str], num_steps: int, resumed_step: int = 0) -> List[Reporter]:
    """The console always, files where there is a run folder, W&B where the config asks for it.

    Call it in the main process only. `resumed_step` is the host step that the run continues after, 0 at a fresh start.
    """
    console = ConsoleReporter(num_steps, resumed_step, quiet=config.quiet)
    reporters: List[Reporter] = [console]
    if run_folder:
        folder = Path(run_folder)
        metrics = partial(JsonlReporter, folder / "metrics.jsonl", resumed_step)
        events = partial(TensorBoardReporter, folder / "tensorboard", resumed_step)
        reporters.append(BestEffort("metrics.jsonl", metrics, console.note))
        reporters.append(BestEffort("TensorBoard files", events, console.note))
        if config.report:
            page = partial(ReportReporter, folder, folder / "metrics.jsonl", resumed_step)
            reporters.append(BestEffort(FILE_NAME, page, console.note))
    return reporters + build_wandb(
        config, run_folder, console.note, resumes=resumed_step > 0 and config.resume_step is None
    )


def build_wandb(
    config: Config, run_folder: Optional[str], note: Callable[[str], None], resumes: bool = False
) -> List[Reporter]:
    """The reporter to Weights & Biases, if the config asks for it."""
    if not config.wandb:
        return []
    settings, name = config.model_dump(mode="json"), config.wandb_run_name or config.run_name
    run = partial(WandbReporter, config.wandb_project_name, name, settings, run_folder or None, resumes, note)
    return [BestEffort("Weights & Biases", run, note)]
