"""The run folder: made new, its steps found, linked to, set aside and pruned.

<run folder>/config.yaml  metrics.jsonl  tensorboard/
             step_<N>/model-0000k-of-0000n.safetensors, optimizer-…, ema-…, their indexes, run.json
             latest -> step_<N>   best -> step_<M>
"""

from __future__ import annotations

import itertools
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
    if (folder / "config.yaml").exists() or any(folder.glob("step_*")):
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
    if config.checkpoint_output_dir == "":
        raise UserError('--resume needs a run folder, but checkpoint_output_dir is "": name the run\'s folder.')
    if config.checkpoint_output_dir:
        runs = [user_path(config.checkpoint_output_dir)]
    else:
        dated = re.compile(re.escape(_run_name(config)) + r"-\d{8}-\d{6}")
        runs = sorted((run for run in Path("runs").glob("*") if dated.fullmatch(run.name)), reverse=True)
    steps = saved_steps(runs[0]) if runs else []
    if steps:
        return _chosen(runs[0], steps, config.resume_step)
    where = runs[0] if runs else f"runs/{_run_name(config)}-*"
    older = next((run for run in runs[1:] if saved_steps(run)), None)
    hint = f"\n       To go on with an older run: --checkpoint-output-dir {older}." if older is not None else ""
    begin = "Leave --resume out to start, or name the run's folder."
    if runs and (runs[0] / "config.yaml").exists():  # it ended before its first save
        begin = "Remove that folder, or name another, and leave --resume out to start anew."
    raise UserError(f"--resume finds no saved step in {where}. {begin}{hint}")


def newest_run(runs: Path) -> Path:
    """Of the run folders in `runs`, the one that was saved last. Raises UserError where none has a saved step."""
    newest = [(steps[-1].stat().st_mtime, run) for run in runs.glob("*/") for steps in [saved_steps(run)] if steps]
    if not newest:
        raise UserError(
            f"no --checkpoint is given, and {runs.absolute()} has no run with a saved step to take it from.\n"
            "       Name one: --checkpoint RUN_FOLDER, or what else --help says."
        )
    return max(newest)[1]


def _chosen(run: Path, steps: List[Path], number: Optional[int]) -> Path:
    if number is None:
        return steps[-1]
    for step in steps:
        if number_of(step) == number:
            return step
    saved = ", ".join(str(number_of(step)) for step in steps)
    aside = next(iter(sorted(run.glob(f"set_aside-*/step_{number}"))), None)
    hint = f" Move {aside} into {run} to have it back." if aside is not None else ""
    raise UserError(f"resume_step = {number}: {run} has no such step.\n       Saved are: {saved}.{hint}")


def saved_steps(run_folder: Path) -> List[Path]:
    """The complete steps of a run, oldest first."""
    return sorted((path for path in step_folders(run_folder) if is_complete(path)), key=number_of)


def step_folders(run_folder: Path) -> List[Path]:
    """All that is named as a step, complete or not."""
    return [path for path in run_folder.glob("step_*") if STEP.fullmatch(path.name)]


def is_complete(step_folder: Path) -> bool:
    """run.json is a step's last file."""
    return (step_folder / "run.json").is_file()


def number_of(step_folder: Path) -> int:
    """How many host steps had been made when it was saved."""
    return int(step_folder.name[len("step_") :])


def linked_step(link: Path) -> Optional[int]:
    """The number of the step that a link points at; None where there is none, or it is no link."""
    if not (link.is_symlink() and link.exists()):
        return None
    match = STEP.fullmatch(link.resolve().name)
    return int(match.group(1)) if match else None


def point(link: Path, step_folder: Path) -> None:
    """Points a link at a step beside it, without a moment in which it points nowhere. Raises OSError.

    Where copying a run has made a folder of the link, that gets another name.
    """
    if link.is_dir() and not link.is_symlink():
        os.replace(link, _unused(link.with_name(f"copy_of_{link.name}")))
    new = link.with_name(f".{link.name}.new")
    if new.is_symlink():
        new.unlink()
    new.symlink_to(step_folder.name)
    os.replace(new, link)


def _unused(path: Path) -> Path:
    """The path, or with a number behind its name the first that is not there."""
    numbers = itertools.count(2)
    first = path
    while path.exists():
        path = first.with_name(f"{first.name}-{next(numbers)}")
    return path


def remove_steps(run_folder: Path, numbers: Iterable[int]) -> None:
    """Deletes steps; a half-deleted one is never taken for a saved one. What an earlier deletion left goes, too."""
    _clear_removed(run_folder)
    for number in numbers:
        folder = run_folder / f"step_{number}"
        os.replace(folder, folder.with_name(REMOVED + folder.name))
    _clear_removed(run_folder)


def _clear_removed(run_folder: Path) -> None:
    for left in run_folder.glob(REMOVED + "*"):
        shutil.rmtree(left, ignore_errors=True)


def set_later_steps_aside(step_folder: Path) -> Optional[Path]:
    """Moves what is named as a step after one from which a run goes on out of its way, complete or not. Returns where to; None
    where there was nothing.
    """
    run_folder = step_folder.parent
    later = [step for step in step_folders(run_folder) if number_of(step) > number_of(step_folder)]
    return _set_aside(run_folder, later) if later else None


def set_incomplete_aside(step_folder: Path) -> None:
    """Makes room for a step where a folder of its name is that is none: not all of it was copied, or run.json is gone."""
    if step_folder.exists() and not is_complete(step_folder):
        _set_aside(step_folder.parent, [step_folder])


def _set_aside(run_folder: Path, steps: Iterable[Path]) -> Path:
    aside = _unused(run_folder / f"set_aside-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir()
    for step in steps:
        os.replace(step, aside / step.name)
    return aside


def superfluous_steps(steps: Iterable[int], best: Optional[int], only_best: Set[int], config: Config) -> List[int]:
    """Those of the saved steps that may go: what was saved for being the best alone (`only_best`) and no longer is, and with
    `keep_last` all but the last few of the others. The newest, the best and every multiple of `keep_every` stay.
    """
    ordered = sorted(steps)
    kept: Set[Optional[int]] = {best, *ordered[-1:]}
    if config.keep_every is not None:
        kept.update(step for step in ordered if step % config.keep_every == 0)
    others = [step for step in ordered if step not in only_best]
    kept.update(others if config.keep_last is None else others[-config.keep_last :])
    return [step for step in ordered if step not in kept]
