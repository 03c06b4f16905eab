"""The run folder: steps saved whole or not at all, found again, and restored into any number of stages.

<run folder>/config.yaml  metrics.jsonl  tensorboard/
             step_<N>/model-0000k-of-0000n.safetensors, optimizer-…, ema-…, their indexes, run.json
             latest -> step_<N>   best -> step_<M>
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import torch

from errors import UserError, user_path
from weights.tensor_files import open_indexed, sync_path, write_index, write_part

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime
    from weights.card import ModelCard


@dataclass
class Progress:
    """How far a run is; all that a resumed run needs besides weights and optimiser state."""

    step: int = 0  # host steps completed
    steps_per_epoch: int = 0
    samples_per_step: int = 0
    best_top1: Optional[float] = None
    best_step: Optional[int] = None
    validated_step: Optional[int] = None  # the newest step that was validated
    loss_scale_factor: float = 1.0  # of automatic loss scaling
    optimizer: str = ""  # whose state is saved
    data: str = ""  # fingerprint of the training set


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


def find_run_to_resume(config: Config) -> Path:
    """The step folder that --resume goes on from: the newest of checkpoint_output_dir, or of this config's newest run."""
    if config.checkpoint_output_dir:
        runs = [user_path(config.checkpoint_output_dir)]
    else:
        dated = re.compile(re.escape(_run_name(config)) + r"-\d{8}-\d{6}")
        runs = sorted((run for run in Path("runs").glob("*") if dated.fullmatch(run.name)), reverse=True)
    for run in runs:
        steps = saved_steps(run)
        if steps:
            return steps[-1]
    where = runs[0] if config.checkpoint_output_dir else f"runs/{_run_name(config)}-*"
    raise UserError(f"--resume finds no saved step in {where}. Leave --resume out to start, or name the run's folder.")


def saved_steps(run_folder: Path) -> List[Path]:
    """The complete steps of a run, oldest first."""
    steps = [path for path in run_folder.glob("step_*") if (path / "run.json").is_file()]
    return sorted(steps, key=lambda path: int(path.name[len("step_") :]))


def save(run_folder: Path, runtime: Runtime, progress: Progress, card: ModelCard, is_best: bool = False) -> Path:
    """Saves a step: every process writes its own parts, then the main one makes the folder appear by renaming it."""
    folder = run_folder / f"step_{progress.step}"
    if not runtime.from_main(folder.exists()):
        partial = run_folder / f".step_{progress.step}.partial"
        if runtime.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        runtime.barrier()
        progress.loss_scale_factor = runtime.loss_scale_factor
        averages = runtime.weights(averaged=True)
        num_parts = {"model": runtime.num_parts, "optimizer": runtime.num_optimizer_parts}
        if runtime.from_main(bool(averages)):
            num_parts["ema"] = runtime.num_parts
        parts_of = {"model": runtime.weights(), "optimizer": runtime.optimizer_state(), "ema": averages}
        for stem, count in num_parts.items():
            for part, tensors in parts_of[stem].items():
                write_part(partial, stem, part, count, tensors)
        runtime.barrier()
        if runtime.is_main:
            _complete(partial, folder, num_parts, progress, card)
    if runtime.is_main:
        _link(run_folder / "latest", folder.name)
        if is_best:
            _link(run_folder / "best", folder.name)
    runtime.barrier()
    return folder


def _complete(partial: Path, folder: Path, num_parts: Dict[str, int], progress: Progress, card: ModelCard) -> None:
    for stem, count in num_parts.items():
        write_index(partial, stem, count)
    details = {**asdict(progress), "model": card.to_json(), "torch": torch.__version__}
    (partial / "run.json").write_text(json.dumps(details, indent=1) + "\n")
    sync_path(partial / "run.json")
    sync_path(partial)
    os.replace(partial, folder)
    sync_path(folder.parent)


def _link(link: Path, target: str) -> None:
    """Points a link at a step, without a moment in which it points nowhere."""
    new = link.with_name(f".{link.name}.new")
    if new.is_symlink():
        new.unlink()
    new.symlink_to(target)
    os.replace(new, link)


def restore(step_folder: Path, runtime: Runtime) -> Progress:
    """Weights, optimiser state and progress of a saved step, into whatever split this run has."""
    weights = open_indexed(step_folder, "model")
    names = runtime.parameter_names()
    for name, shape in names.items():
        if weights.shapes.get(name) != shape:
            raise UserError(
                f"{step_folder} has {name} of shape {weights.shapes.get(name)}, the config makes it {shape}.\n"
                "       Resume with the config that the run was started with (config.yaml in its folder), or name another run\n"
                "       with --checkpoint-output-dir."
            )
    averages = open_indexed(step_folder, "ema") if (step_folder / "ema.safetensors.index.json").is_file() else None
    runtime.load_weights(weights.read(names), averages.read(names) if averages is not None else None)
    state = open_indexed(step_folder, "optimizer")
    runtime.load_optimizer_state(state.read(name for name in state.files if name.rsplit(".", 1)[0] in names))
    progress = read_progress(step_folder)
    runtime.loss_scale_factor = progress.loss_scale_factor
    return progress


def read_progress(step_folder: Path) -> Progress:
    try:
        details: Dict[str, Any] = json.loads((step_folder / "run.json").read_text())
        return Progress(**{name: details[name] for name in asdict(Progress())})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{step_folder / 'run.json'} is missing or damaged ({error}). Use another step.") from error
