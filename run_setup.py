"""Puts a training run together for `pretrain.py` and `finetune.py`: data, runtime, run folder, resume and reporters."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from agreement import check_folder_is_shared, decided_by_main, raise_together
from allocation import allocation_table
from checkpoint import Progress
from dataset.bad_images import BadImageLog
from dataset.base import fingerprint
from dataset.class_balance import balance_notes, with_positive_weights
from dataset.held_out import Subset
from dataset.loader import EvalLoader, TrainLoader
from dataset.registry import is_test_set, leaves_test_set, open_source
from errors import UserError
from insight.observing import Observer
from insight.run_record import run_record
from machine import spans_hosts
from models.architecture import architecture_of
from models.freezing import frozen_units, is_frozen
from reporting.build import build_reporters
from resuming import resume, with_settings_of_the_run
from run_folder import new_run_folder
from runtime.build import build_runtime
from saving import Saver
from training import Run, number_of_steps
from weights.card import card_of
from weights.whole_model import parameter_shapes

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source
    from placement import Placement
    from runtime.base import Runtime


def prepare_run(config: Config, placement: Placement) -> Run:
    """Everything that `training.fit` needs, the first notes printed. Raises UserError for what cannot be had."""
    config = with_settings_of_the_run(config)
    config, source, held_out, runtime = _open_and_join(config, placement)
    _check_same_everywhere(runtime, (source, held_out))
    bad_images = BadImageLog()
    train = TrainLoader(source, config, runtime.share, runtime.from_first_stage, bad_images)
    validation = evaluation_loader(config, held_out, runtime, bad_images) if held_out is not None else None
    notes = [allocation_table(config, placement)] + opening_notes(config, placement, runtime)
    notes += data_notes(config, source, held_out, train)
    folder, progress = _folder_and_progress(config, runtime, train, fingerprint(source), notes)
    card = card_of(config, source.class_names, multi_label=source.labels.ndim == 2)
    if folder is not None:
        bad_images.write_into(folder)
    reporters = []
    if runtime.is_main:
        reporters = build_reporters(
            config,
            str(folder) if folder else None,
            number_of_steps(config, train.steps_per_epoch, progress.shift),
            progress.step,
        )
    commands = _commands(config, folder)
    observer = Observer(config, placement, runtime, reporters, folder, held_out)
    run = Run(
        config, runtime, train, validation, reporters, folder, progress, card, bad_images, None, observer, *commands
    )
    if folder is not None:
        run.saver = Saver(folder, runtime, config, card, run.note)
    if progress.step >= run.num_steps:
        notes.append(
            f"the run has all its {run.num_steps:,} steps already; a larger --epochs or --training-steps goes on"
        )
    run.note(*notes)
    for reporter in reporters:
        reporter.began(run_record(config, placement, source, held_out, run.num_steps, progress.step))
    return run


def _open_and_join(config: Config, placement: Placement) -> Tuple[Config, Source, Optional[Source], Runtime]:
    """The config with what data and machine decide, training data, validation data and the runtime. Where a host has no data,
    all say so, and none waits for it.
    """
    problem, source, held_out = "", None, None
    try:
        source = open_source(config, "train")
        if source is None:
            raise UserError(f"dataset = {config.dataset} has no training images.")
        held_out = open_source(config, "validation")
        config = with_positive_weights(config, source)
    except UserError as error:
        if not spans_hosts():
            raise
        problem = str(error)
    runtime = build_runtime(config, placement)
    raise_together(runtime, problem)
    assert source is not None
    return runtime.config, source, held_out, runtime


def evaluation_loader(
    config: Config, source: Source, runtime: Runtime, bad_images: Optional[BadImageLog] = None
) -> EvalLoader:
    """This process's share of a validation set."""
    return EvalLoader(
        source,
        config,
        batch_size=runtime.eval_batch_size,
        share_index=runtime.eval_share_index,
        num_shares=runtime.eval_num_shares,
        images=runtime.share.images,
        targets=runtime.share.targets,
        agree=runtime.from_first_stage,
        bad_images=bad_images,
    )


def opening_notes(config: Config, placement: Placement, runtime: Runtime) -> List[str]:
    """What a user should know of how the config is run here: folding, precision, keys without effect."""
    unused = config.unused(placement.runtime)
    notes = list(runtime.notes)
    if unused:
        notes.append(f"keys of the config that this run does not use: {', '.join(unused)}")
    return notes + freezing_notes(config)


def freezing_notes(config: Config) -> List[str]:
    """How much of the model is trained, where that is not all of it."""
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(architecture_of(config)).items()}
    trained = sum(size for name, size in sizes.items() if not is_frozen(name, config))
    if not config.trains or not frozen_units(config):  # fixed positions are no part that could have been trained
        return []
    what = "the classifier alone" if config.linear_probe else f"all but {' and '.join(_shown_units(config))}"
    notes = [f"trained: {what}, {trained:,} of {sum(sizes.values()):,} weights; the rest runs as in evaluation"]
    if not config.pretrained_checkpoint and not config.resume_training_from_checkpoint:
        notes.append("no pretrained_checkpoint is given: the weights that are not trained stay random")
    return notes


def _shown_units(config: Config) -> List[str]:
    last = (config.freeze_layers or 0) - 1
    blocks = [] if last < 0 else ["block 0"] if last == 0 else [f"blocks 0-{last}"]
    return ["the embedding", *blocks]


def data_notes(
    config: Config,
    source: Source,
    held_out: Optional[Source],
    train: TrainLoader,
) -> List[str]:
    notes = list(dict.fromkeys(note for data in (source, held_out) if data is not None for note in data.notes))
    if source.num_classes < config.num_labels:
        notes.append(
            f"the data has {source.num_classes:,} classes, num_labels = {config.num_labels:,} more than it needs"
        )
    if config.validation_split and config.dataset != "chest_xray" and not isinstance(held_out, (Subset, type(None))):
        notes.append("validation_split is not used: the data has a validation set of its own")
    notes += balance_notes(config, source, held_out if config.validation_epochs else None)
    if held_out is not None and leaves_test_set(config):
        notes.append(
            f"validated on {len(held_out):,} of the training images, held out; the test set waits for validation.py with "
            "--validation-split 0"
        )
    elif is_test_set(config) and config.early_stopping is not None and config.validation_epochs:
        notes.append(
            "the test set decides when to stop: --validation-split 0.1 would leave that to training images held out"
        )
    if train.dropped and not config.balanced_sampling:
        notes.append(
            f"each epoch leaves {train.dropped:,} images out, others every time: it makes {train.steps_per_epoch:,} whole host "
            f"step{'s' * (train.steps_per_epoch > 1)} of {config.samples_per_step:,}"
        )
    if held_out is None and config.validation_epochs:
        notes.append(
            "no validation set found: the run is not validated (--validation-split 0.2 would hold a share out)"
        )
    num_steps = number_of_steps(config, train.steps_per_epoch)
    if config.warmup_steps >= num_steps and not config.warmup_ratio:
        notes.append(
            f"warmup_steps = {config.warmup_steps:,}: the learning rate rises through all {num_steps:,} steps of the run "
            "(--warmup-steps sets fewer, --warmup-ratio 0.1 a share)"
        )
    return notes


def _folder_and_progress(
    config: Config, runtime: Runtime, train: TrainLoader, data: str, notes: List[str]
) -> Tuple[Optional[Path], Progress]:
    """A resumed run's folder and state, or a new folder and the starting weights."""
    if config.resume_training_from_checkpoint:
        folder, progress, more = resume(config, runtime, train.steps_per_epoch, data)
        notes += more
        return folder, progress
    new = decided_by_main(runtime, lambda: new_run_folder(config))
    if new is not None:
        check_folder_is_shared(new, runtime, is_new=True)
    return new, Progress(
        steps_per_epoch=train.steps_per_epoch,
        samples_per_step=config.samples_per_step,
        optimizer=config.optimizer,
        data=data,
    )


def _check_same_everywhere(runtime: Runtime, sources: Sequence[Optional[Source]]) -> None:
    """Processes on several hosts must read the same data: labels of one go with images of another."""
    own = [fingerprint(source) if source is not None else "" for source in sources]
    theirs = runtime.from_main(own)
    differ = (
        f"the data sets of this host and of the first process differ: {' and '.join(own)} here, {' and '.join(theirs)}\n"
        "       there (images, and a digest of their labels). Copy the same data to every host."
    )
    raise_together(runtime, differ if own != theirs else "")


def _commands(config: Config, folder: Optional[Path]) -> Tuple[Optional[str], Optional[str]]:
    """What to type next, from the working folder: to validate the run, and to go on with it where it was stopped."""
    if folder is None:
        return None, None
    python = sys.executable
    if shutil.which("python") == python:
        python = "python"
    elif Path.cwd() in Path(python).parents:
        python = os.path.relpath(python)

    def command(name: str, *flags: str) -> str:
        script = Path(__file__).with_name(f"{name}.py")
        shown = script.name if script.parent == Path.cwd() else str(script)
        return " ".join([python, shown, f"--config-file {shlex.quote(f'{folder}/config.yaml')}", *flags])

    go_on = [f"--checkpoint-output-dir {shlex.quote(str(folder))}", "--resume"]
    if spans_hosts():  # whoever started this process knows how
        resume = " ".join(["on all hosts, as this run was started, with:", *go_on])
    else:
        resume = command(config.command, *go_on)
    on_test_set = ["--validation-split 0"] if leaves_test_set(config) else []
    return command("validation", f"--pretrained-checkpoint {shlex.quote(str(folder))}", *on_test_set), resume
