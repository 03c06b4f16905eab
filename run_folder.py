"""The run folder: made new, its steps found, linked to, set aside and pruned.

<run folder>/config.yaml  metrics.jsonl  tensorboard/
             step_<N>/model-0000k-of-0000n.safetensors, optimizer-…, ema-…, their indexes, run.json
             latest -> step_<N>   best -> step_<M>
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Iterable, List, Optional, Set

from errors import UserError, user_path

if TYPE_CHECKING:
    from config import Config

STEP = re.compile(r"step_(\d+)")
REMOVED = ".removed-"  # before the name of a step that is being deleted


def new_run_folder(config: Config) -> Optional[Path]:
    """The folder of a run that starts now, made here; None where checkpoint_output_dir is "". Main process only."""
    if config.checkpoint_output_dir == "":
        return None
    name = f"{_run_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = user_path(config.checkpoint_output_dir or f"runs/{name}")
    if (folder / "config.yaml").exists():
        raise UserError(
            f"checkpoint_output_dir = {folder} already holds a run, which would be overwritten.\n"
            "       Go on with it by --resume, or choose another --checkpoint-output-dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder, config)
    except OSError as error:
        raise UserError(f"checkpoint_output_dir = {folder} cannot be written ({error.strerror}).") from error
    return folder


def write_config(run_folder: Path, config: Config) -> None:
    """The config that a run goes by from now on, usable from any working folder."""
    new = run_folder / ".config.yaml.new"
    new.write_text(config.with_full_paths().to_yaml(), encoding="utf-8")
    os.replace(new, run_folder / "config.yaml")


def _run_name(config: Config) -> str:
    return config.run_name or config.config


def find_step_to_resume(config: Config) -> Path:
    """The step folder that --resume goes on from, in checkpoint_output_dir or in this config's newest run: `resume_step`,
    or the newest. Raises UserError where there is none.
    """
    if config.checkpoint_output_dir:
        runs = [user_path(config.checkpoint_output_dir)]
    else:
        dated = re.compile(re.escape(_run_name(config)) + r"-\d{8}-\d{6}")
        runs = sorted((run for run in Path("runs").glob("*") if dated.fullmatch(run.name)), reverse=True)
    for run in runs:
        steps = saved_steps(run)
        if steps:
            return _chosen(run, steps, config.resume_step)
    where = runs[0] if config.checkpoint_output_dir else f"runs/{_run_name(config)}-*"
    raise UserError(f"--resume finds no saved step in {where}. Leave --resume out to start, or name the run's folder.")


def _chosen(run: Path, steps: List[Path], number: Optional[int]) -> Path:
    if number is None:
        return steps[-1]
    for step in steps:
        if number_of(step) == number:
            return step
    saved = ", ".join(str(number_of(step)) for step in steps)
    raise UserError(f"resume_step = {number}: {run} has no such step.\n       Saved are: {saved}.")


def saved_steps(run_folder: Path) -> List[Path]:
    """The complete steps of a run, oldest first."""
    steps = [path for path in run_folder.glob("step_*") if STEP.fullmatch(path.name) and (path / "run.json").is_file()]
    return sorted(steps, key=number_of)


def number_of(step_folder: Path) -> int:
    """How many host steps had been made when it was saved."""
    return int(step_folder.name[len("step_") :])


def point(link: Path, step_folder: Path) -> None:
    """Points a link at a step beside it, without a moment in which it points nowhere."""
    new = link.with_name(f".{link.name}.new")
    if new.is_symlink():
        new.unlink()
    new.symlink_to(step_folder.name)
    os.replace(new, link)


def remove_steps(step_folders: Iterable[Path]) -> None:
    """Deletes steps; a half-deleted one is never taken for a saved one. What an earlier deletion left goes, too."""
    for folder in step_folders:
        os.replace(folder, folder.with_name(REMOVED + folder.name))
        for left in folder.parent.glob(REMOVED + "*"):
            shutil.rmtree(left, ignore_errors=True)


def set_later_steps_aside(step_folder: Path) -> Optional[Path]:
    """Moves the steps after one, from which a run goes on, out of its way. Returns where to; None where there were none."""
    run_folder = step_folder.parent
    later = [step for step in saved_steps(run_folder) if number_of(step) > number_of(step_folder)]
    if not later:
        return None
    aside = run_folder / f"set_aside-{time.strftime('%Y%m%d-%H%M%S')}"
    aside.mkdir()
    for step in later:
        os.replace(step, aside / step.name)
    return aside


def superfluous_steps(steps: Iterable[int], best: Optional[int], once_best: Set[int], config: Config) -> List[int]:
    """Those of the saved steps that may go: what was saved for being the best and no longer is (`once_best`), and with
    `keep_last` all but the last few of those that were saved on schedule. The newest, the best and every multiple of
    `keep_every` stay.
    """
    ordered = sorted(steps)
    kept: Set[Optional[int]] = {best, *ordered[-1:]}
    if config.keep_every is not None:
        kept.update(step for step in ordered if step % config.keep_every == 0)
    scheduled = [step for step in ordered if step % config.checkpoint_save_steps == 0]
    if config.keep_last is None:
        kept.update(scheduled, set(ordered) - once_best)
    else:
        kept.update(scheduled[-config.keep_last :])
    return [step for step in ordered if step not in kept]
