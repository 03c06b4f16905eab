"""Saves steps while training goes on: a copy in memory, which `step_writer` brings onto the disk."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor

from checkpoint import Progress, was_best
from errors import UserError
from reporting.base import SaveRecord
from run_folder import number_of, point, remove_steps, saved_steps, superfluous_steps
from step_writer import StepParts, StepWriter, hidden_folder, reason
from weights.tensor_files import part_name

if TYPE_CHECKING:
    from config import Config
    from runtime.base import Runtime
    from weights.card import ModelCard

GRACE_SECONDS = 30.0  # that a step being written is waited for when the run ends by an error


class Saver:
    """Saves the steps of one run. All processes call the same methods in the same order; `note` speaks in the main one."""

    def __init__(
        self, folder: Path, runtime: Runtime, config: Config, card: ModelCard, note: Callable[[str], None]
    ) -> None:
        self._folder, self._runtime, self._config, self._card, self._note = folder, runtime, config, card, note
        self._staging: Dict[str, Tensor] = {}
        self._writer: Optional[StepWriter] = None
        self._done: List[SaveRecord] = []

    def save(self, progress: Progress, is_best: bool = False) -> None:
        """Saves a step; with `background_save`, training goes on while it is written. One that is there is only linked to.

        Raises UserError where it, or the step before it, cannot be saved and `on_save_error` is to stop.
        """
        begun = time.perf_counter()
        self.wait()
        folder = self._folder / f"step_{progress.step}"
        links = ("latest", "best") if is_best else ("latest",)
        hidden, error = self._runtime.from_main(_open(folder, links) if self._runtime.is_main else None)
        if error is not None:
            self._fail(progress.step, error)
        elif hidden is not None:
            parts, main = self._own_parts(progress), self._runtime.is_main
            self._writer = StepWriter(folder, Path(hidden), parts, self._card, completes=main, links=links, begun=begun)
            if not self._config.background_save:
                self.wait()

    def poll(self) -> List[SaveRecord]:
        """What has come onto the disk since the last time, without waiting. Raises UserError as `save` does."""
        writer = self._writer
        if writer is not None and writer.is_over:
            if writer.error is not None and self._config.on_save_error == "stop":
                self._fail(writer.step, writer.error)
            self._take_record(writer)
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

    def give_up(self) -> None:
        """After an error of the run: a step that is nearly saved may be saved, without asking the other processes."""
        if self._writer is not None:
            self._writer.join(GRACE_SECONDS)
            self._writer.abandoned.set()

    def _take_record(self, writer: StepWriter) -> None:
        """Notes that a step is there, and removes those that it makes superfluous: in the main process, once."""
        if writer.record is not None:
            self._done.append(writer.record)
            writer.record = None
            self._prune()

    def _prune(self) -> None:
        steps = {number_of(folder): folder for folder in saved_steps(self._folder)}
        best = self._folder / "best"
        kept = number_of(best.resolve()) if self._config.keep_best and best.is_dir() else None
        once_best = {step for step, folder in steps.items() if was_best(folder)}
        try:
            remove_steps(steps[step] for step in superfluous_steps(steps, kept, once_best, self._config))
        except OSError as error:
            self._note(f"old steps in {self._folder} could not be removed: {reason(error)}")

    def _fail(self, step: int, why: str) -> None:
        what = f"step {step} could not be saved in {self._folder}: {why}."
        if self._config.on_save_error == "stop":
            raise UserError(
                f"{what}\n       What was saved before is untouched. Make room or the folder writable, and go on with --resume.\n"
                "       With --on-save-error warn a run trains on, and tries again when the next step is due."
            )
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
        return StepParts(replace(progress, loss_scale_factor=runtime.loss_scale_factor), files, num_parts)

    def _copied(self, name: str, value: Tensor) -> Tensor:
        """A copy that training will not change. Its memory is kept: to find new pages costs several times the copy."""
        copy = self._staging.get(name)
        if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        if self._config.background_save:
            self._staging[name] = copy
        return copy.copy_(value)


def _open(step_folder: Path, links: Tuple[str, ...]) -> Tuple[Optional[str], Optional[str]]:
    """In the main process: a folder for the parts of a step, or None after linking to one that is there; else what went wrong."""
    try:
        if not step_folder.exists():
            return str(hidden_folder(step_folder)), None
        for link in links:
            point(step_folder.with_name(link), step_folder)
        return None, None
    except OSError as error:
        return None, reason(error)
