"""Saves steps while training goes on: a copy in memory, which `step_writer` brings onto the disk."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from checkpoint import Progress, is_only_best
from errors import UserError
from reporting.records import SaveRecord
from run_folder import (
    is_complete,
    linked_step,
    number_of,
    point,
    remove_steps,
    saved_steps,
    set_incomplete_aside,
    superfluous_steps,
)
from step_writer import StepParts, StepWriter, hidden_folder, reason
from weights.tensor_files import part_name

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime
    from weights.card import ModelCard

# That a step being written is waited for when the run ends by an error; less where others have parts, which may never come.
GRACE_SECONDS, GRACE_SECONDS_FOR_OTHERS = 30.0, 2.0


class Saver:
    """Saves the steps of one run. All processes call the same methods in the same order; `note` speaks in the main one."""

    def __init__(
        self, folder: Path, runtime: Runtime, config: Config, card: ModelCard, note: Callable[[str], None]
    ) -> None:
        self._folder, self._runtime, self._config, self._card, self._note = folder, runtime, config, card, note
        self._staging: Dict[str, Tensor] = {}
        self._writer: Optional[StepWriter] = None
        self._done: List[SaveRecord] = []
        self._told = False  # whether the newest step's failure has been told

    def save(self, progress: Progress, is_best: bool = False, only_best: bool = False) -> None:
        """Saves a step; with `background_save`, training goes on while it is written. One that is there is only linked to.

        `only_best`: it would not be saved if it were not the best. Raises UserError where it, or the step before it, cannot be
        saved and `on_save_error` is to stop.
        """
        begun = time.perf_counter()
        self.wait()
        self._told = False
        self._check_finite(progress.step)
        folder = self._folder / f"step_{progress.step}"
        links = ("latest", "best") if is_best and self._config.keep_best else ("latest",)
        hidden, error = self._runtime.from_main(_open(folder, links) if self._runtime.is_main else None)
        if error is not None:
            self._fail(progress.step, error)
        elif hidden is not None:
            self._writer = StepWriter(
                folder,
                Path(hidden),
                self._own_parts(progress),
                self._card,
                completes=self._runtime.is_main,
                links=links,
                only_best=only_best,
                afterwards=self._prune,
                begun=begun,
            )
            if not self._config.background_save:
                self.wait()
                stalled = time.perf_counter() - begun
                self._done = [replace(r, stall_seconds=stalled) if r.step == progress.step else r for r in self._done]

    def _check_finite(self, step: int) -> None:
        """Raises UserError in all processes where weights went bad, as they can on devices that make every update."""
        if not self._runtime.makes_every_update:
            return
        weights = {name: value for part in self._runtime.weights().values() for name, value in part.items()}
        bad = next((name for name, value in weights.items() if not bool(value.isfinite().all())), None)
        bad = next((name for name in self._runtime.gather(bad) if name is not None), None)
        if bad is not None:
            raise UserError(
                f"step {step} is not saved: its weights are no longer finite ({bad}), since this device makes every update.\n"
                "       What was saved before is untouched: lower learning_rate or loss_scaling and go on with --resume."
            )

    def poll(self) -> List[SaveRecord]:
        """What has come onto the disk since the last time, without waiting. Raises UserError as `save` does."""
        writer = self._writer
        if writer is not None and writer.is_over:
            self._take_record(writer)
            if writer.error is not None and not self._told:
                self._fail(writer.step, writer.error)
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Waits until the step that is being saved is on the disk, or has failed in some process. Raises as `save` does."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.own_parts_are_over.wait()
        errors = [error for error in self._runtime.gather(writer.error) if error is not None]
        if errors:
            writer.abandoned.set()
        writer.join()
        last = self._runtime.from_main(writer.error)  # of the process that lets the step appear
        self._take_record(writer)
        if errors or last is not None:
            self._fail(writer.step, (errors or [last])[0])

    def has(self, step: int) -> bool:
        """Whether a step is on the disk; the same in every process."""
        return bool(self._runtime.from_main(is_complete(self._folder / f"step_{step}")))

    def give_up(self) -> None:
        """After an error of the run: a step that is nearly saved may be saved, without asking the other processes."""
        if self._writer is not None:
            self._writer.join(GRACE_SECONDS if self._writer.has_all_parts else GRACE_SECONDS_FOR_OTHERS)
            self._writer.abandoned.set()

    def _take_record(self, writer: StepWriter) -> None:
        """Keeps what is to be told of a step that is there, once."""
        record, writer.record = writer.record, None
        if record is not None:
            self._done.append(record)
            if writer.remark is not None:
                self._note(writer.remark)

    def _prune(self) -> None:
        """Removes the steps that a new one makes superfluous. Raises OSError."""
        folders = {number_of(folder): folder for folder in saved_steps(self._folder)}
        only_best = {step for step, folder in folders.items() if is_only_best(folder)}
        best = linked_step(self._folder / "best") if self._config.keep_best else None
        remove_steps(self._folder, superfluous_steps(folders, best, only_best, self._config))

    def _fail(self, step: int, why: str) -> None:
        what = f"step {step} could not be saved in {self._folder}: {why}."
        if self._config.on_save_error == "stop":
            raise UserError(
                f"{what}\n       What was saved before is untouched. Make room or the folder writable, and go on with --resume.\n"
                "       With --on-save-error warn a run trains on, and tries again when the next step is due."
            )
        if not self._told:
            self._told = True
            self._note(f"{what} The run goes on; what was saved before is untouched.")

    def _own_parts(self, progress: Progress) -> StepParts:
        """Copies of all that this process has to write, and of how the run stands."""
        runtime = self._runtime
        averages = runtime.weights(averaged=True)
        num_parts = {"model": runtime.num_parts, "optimizer": runtime.num_optimizer_parts}
        if runtime.from_main(bool(averages)):
            num_parts["ema"] = runtime.num_parts
        parts_of = {"model": runtime.weights(), "optimizer": runtime.optimizer_state(), "ema": averages}
        files: Dict[str, Mapping[str, Tensor]] = {}
        for stem, count in num_parts.items():
            for part, tensors in parts_of[stem].items():
                file = part_name(stem, part, count)
                files[file] = {name: self._copied(f"{file}/{name}", value) for name, value in tensors.items()}
        return StepParts(
            replace(progress, loss_scale_factor=runtime.loss_scale_factor, backend=runtime.backend), files, num_parts
        )

    def _copied(self, name: str, value: Tensor) -> Tensor:
        """A copy that training will not change. Its memory is kept: to find new pages costs several times the copy."""
        copy = self._staging.get(name)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            kept = self._config.background_save
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda and kept)
            if kept:
                self._staging[name] = copy
        return copy.copy_(value)


def _open(step_folder: Path, links: Tuple[str, ...]) -> Tuple[Optional[str], Optional[str]]:
    """In the main process: a folder for the parts of a step, or None after linking to one that is there; else what went wrong."""
    try:
        if not is_complete(step_folder):
            set_incomplete_aside(step_folder)
            return str(hidden_folder(step_folder)), None
        for link in links:
            point(step_folder.with_name(link), step_folder)
        return None, None
    except OSError as error:
        return None, reason(error)
