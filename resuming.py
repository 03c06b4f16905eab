"""Goes on with a run: finds its step, checks that it is whole and fits, says what has changed, and puts everything back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import checkpoint
from agreement import check_folder_is_shared, decided_by_main
from checkpoint import Progress
from config import load_config
from errors import UserError
from run_folder import (
    find_step_to_resume,
    is_complete,
    linked_step,
    number_of,
    point,
    saved_steps,
    set_later_steps_aside,
    write_config,
)
from weights.card import ARCHITECTURE_FIELDS, NEWER_FIELDS, ModelCard, card_of

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime

# What a model's sizes are called in configs, where it is not what the model calls them.
KEYS_OF_SIZES = {
    "patch_size": "patches_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
NOT_SIZES = ("pixel_mean", "pixel_std")  # may change, as any other key
# Keys that say where and how a run is watched, not what it does.
SILENT = {"checkpoint_output_dir", "config", "resume_step", "resume_training_from_checkpoint", "debug", "config_file"}


def resume(config: Config, runtime: Runtime, steps_per_epoch: int, data: str) -> Tuple[Path, Progress, List[str]]:
    """The run's folder, how far it is, and notes; weights and optimiser state are in the runtime. `data`: today's fingerprint.

    Raises UserError where there is nothing to go on from, a file is damaged, or the config does not fit what is saved.
    """
    step_folder = decided_by_main(runtime, lambda: _find(config))
    run_folder = step_folder.parent
    check_folder_is_shared(run_folder, runtime)
    _check_fits(step_folder, config, data)
    notes = [f"resumed after step {number_of(step_folder)} from {step_folder}"]
    notes += decided_by_main(runtime, lambda: _changes(run_folder, config))
    progress = checkpoint.restore(step_folder, runtime)
    notes += _take_on_batch(progress, steps_per_epoch, config.samples_per_step)
    more, has_best = decided_by_main(runtime, lambda: _tidy(step_folder, progress, config))
    if not has_best:
        progress.best_top1 = progress.best_auc = progress.best_step = None
    return run_folder, progress, notes + more


def _find(config: Config) -> Path:
    """The step to go on from, every file of it read. Raises UserError, naming the newest good one before it."""
    folder = find_step_to_resume(config)
    try:
        checkpoint.check_whole(folder)
    except UserError as error:
        earlier = [step for step in saved_steps(folder.parent) if number_of(step) < number_of(folder)]
        good = checkpoint.newest_whole(earlier)
        remedy = "No step before it is good: start anew."
        if good is not None:
            number = number_of(good)
            remedy = (
                f"The newest good step before it is {number}: go on from there with --resume --resume-step {number}."
            )
        raise UserError(f"{str(error).splitlines()[0]}\n       {remedy}") from error
    return folder


def _check_fits(step_folder: Path, config: Config, data: str) -> None:
    """Raises UserError where the model, the optimiser or the data is another."""
    details = checkpoint.read_run_details(step_folder)
    saved, now = ModelCard.from_json(details["model"]).arch, card_of(config).arch
    differing = {
        KEYS_OF_SIZES.get(name, name): (getattr(saved, name), getattr(now, name))
        for name in (*ARCHITECTURE_FIELDS, *NEWER_FIELDS)
        if name not in NOT_SIZES and getattr(saved, name) != getattr(now, name)
    }
    if details["optimizer"] != config.optimizer:
        differing["optimizer"] = (details["optimizer"], config.optimizer)
    if differing:
        was, is_now = (", ".join(f"{key} = {_shown(pair[i])}" for key, pair in differing.items()) for i in (0, 1))
        raise UserError(
            f"{step_folder} was trained with {was}; now {is_now}.\n"
            f"       A run keeps these. Resume with what it began with (config.yaml in its folder), or start a new run from its\n"
            f"       weights: finetune.py --pretrained-checkpoint {step_folder.parent} (it draws a new head for other classes)."
        )
    if details["data"] != data:
        raise UserError(
            f"{step_folder} was trained on other data: {details['data'].split()[0]} images then, {data.split()[0]} now, or "
            "other labels.\n       Go on with the data that it began with, or start anew from it with --pretrained-checkpoint."
        )


def _changes(run_folder: Path, config: Config) -> List[str]:
    """What is not as the run's config.yaml has it, in one note."""
    try:
        before = load_config(config.command, ["--config-file", str(run_folder / "config.yaml")])
    except UserError as error:
        return [f"what has changed in the config is not known: {str(error).splitlines()[0]}"]
    old, new = _comparable(before), _comparable(config)
    changed = [f"{key} {_shown(old[key])} -> {_shown(value)}" for key, value in new.items() if old[key] != value]
    return [f"resumed with other keys: {', '.join(changed)}"] if changed else []


def _comparable(config: Config) -> Dict[str, Any]:
    values = config.with_full_paths().model_dump(exclude=SILENT)
    return {key: value for key, value in values.items() if not key.startswith("wandb")}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _take_on_batch(progress: Progress, steps_per_epoch: int, samples_per_step: int) -> List[str]:
    """Goes on at the same image of the epoch where host steps have another size than they had."""
    saved = progress.steps_per_epoch, progress.samples_per_step
    if saved == (steps_per_epoch, samples_per_step):
        return []
    epoch, into_epoch = divmod(progress.position, progress.steps_per_epoch)
    images = into_epoch * progress.samples_per_step
    steps = min(-(-images // samples_per_step), steps_per_epoch)
    progress.shift = progress.step - (epoch * steps_per_epoch + steps)
    progress.steps_per_epoch, progress.samples_per_step = steps_per_epoch, samples_per_step
    went_on = steps * samples_per_step
    sizes = f"host steps of {samples_per_step:,} images, {saved[1]:,} before"
    return [f"{sizes}: epoch {epoch + 1} goes on after {went_on:,} of its images, where it was after {images:,}"]


def _tidy(step_folder: Path, progress: Progress, config: Config) -> Tuple[List[str], bool]:
    """The run folder as this step has it, which a crash may have come between. Gives notes, and whether the best step is there.

    Raises UserError where the folder cannot be written.
    """
    run_folder = step_folder.parent
    try:
        aside = set_later_steps_aside(step_folder)
        point(run_folder / "latest", step_folder)
        notes = [f"the steps after it are in {aside} now"] if aside is not None else []
        write_config(run_folder, config)
        if progress.best_step is None or not config.keep_best:
            return notes, True
        best = run_folder / f"step_{progress.best_step}"
        if is_complete(best):
            point(run_folder / "best", best)
        elif linked_step(run_folder / "best") is None:
            (run_folder / "best").unlink(missing_ok=True)
            return [*notes, f"the best step until then, {progress.best_step}, is no longer there"], False
        return notes, True
    except OSError as error:
        raise UserError(
            f"{run_folder} cannot be written ({error.strerror or error}), so no run can go on there."
        ) from error


def with_settings_of_the_run(config: Config) -> Config:
    """The config with the `layer_norm_eps` of the step that it goes on from, where no flag gives one, and, where it has
    `precision: auto`, the precision that the run began with: nothing is measured again.
    """
    if not config.resume_training_from_checkpoint:
        return config
    try:
        step_folder = find_step_to_resume(config)
        return _with_precision(_with_epsilon(config, step_folder), step_folder.parent)
    except UserError:
        return config  # what is wrong is told by `resume`


def _with_epsilon(config: Config, step_folder: Path) -> Config:
    if "layer_norm_eps" in config.flags:
        return config
    try:
        details = checkpoint.read_run_details(step_folder)
        return config.model_copy(update={"layer_norm_eps": float(details["model"]["layer_norm_eps"])})
    except (UserError, KeyError, TypeError, ValueError):
        return config


def _with_precision(config: Config, run_folder: Path) -> Config:
    if config.precision != "auto":
        return config
    try:
        before = load_config(config.command, ["--config-file", str(run_folder / "config.yaml")])
    except UserError:
        return config
    return config.model_copy(update={"precision": before.precision})
