"""What reports show of machine and model: a step's timeline, memory, pictures of what the weights do.

A failure in any of it becomes one note and never ends a run. Nothing here changes a number of the run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Callable, List, Optional, Set

from insight.timeline import measured_timeline, planned_timeline
from insight.views import NUM_SAMPLES, Sample, model_views, read_samples
from models.architecture import architecture_of, count_forward_flops
from reporting.records import MemoryRecord, ModelViews, ProcessMemory
from run_folder import number_of, saved_steps
from weights.own import open_step_folder

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source
    from placement import Placement
    from reporting.base import Reporter
    from runtime.base import Runtime

SHARE_FOR_VIEWS = 0.0025  # of a run's time, until it ends
# A second, and seconds besides: until views have been made once, their time is guessed by it, about twice what one core took.
CAUTIOUS_FLOPS, CAUTIOUS_SECONDS = 2.5e10, 0.1


class Observer:
    """Tells a run's reporters. All processes call the same methods in the same order; the main one has the reporters."""

    def __init__(
        self,
        config: Config,
        placement: Placement,
        runtime: Runtime,
        reporters: List[Reporter],
        folder: Optional[Path],
        held_out: Optional[Source],
    ) -> None:
        self._config, self._placement, self._runtime, self._reporters = config, placement, runtime, reporters
        self._views = ViewMaker(config, folder, held_out)
        self._num_validations = 0
        self._held_at = -1  # the step of the newest memory record
        self._failed: Set[str] = set()

    def trace_next_step(self) -> None:
        self._runtime.trace_next_step()

    def tell_timeline(self, step: int, seconds: float) -> None:
        """After the step for which `trace_next_step` was called, which took so long."""
        traces = self._runtime.gather(self._runtime.trace())
        measured = [trace for trace in traces if trace is not None]

        def tell() -> None:
            if len(measured) == len(traces):
                timeline = measured_timeline(self._config, self._placement, step, measured)
            else:
                timeline = planned_timeline(
                    self._config, self._placement, step, seconds / self._config.device_iterations
                )
            for reporter in self._reporters:
                reporter.traced(timeline)

        self._attempt("timeline", tell)

    def after_validation(self, step: int) -> None:
        """Memory, and views where a step has come onto the disk since the last ones and there is time for it.

        Processes wait for each other when they are asked for their memory: at validations 1, 2, 4, 8 and so on, and at the end.
        """
        self._num_validations += 1
        if self._num_validations & (self._num_validations - 1) == 0:
            self._tell_memory(step)
        self._attempt("pictures of the model", lambda: self._tell_views(at_any_cost=False))

    def at_end(self, step: int, in_a_hurry: bool) -> None:
        if step != self._held_at:
            self._tell_memory(step)
        self._attempt("pictures of the model", lambda: self._tell_views(at_any_cost=not in_a_hurry))

    def _tell_memory(self, step: int) -> None:
        self._held_at = step
        peaks = self._runtime.gather(self._runtime.peak_memory())

        def tell() -> None:
            names = self._process_names(len(peaks))
            processes = (ProcessMemory(name, *peak) for name, peak in zip(names, peaks))
            record = MemoryRecord(step, tuple(processes))
            for reporter in self._reporters:
                reporter.held(record)

        self._attempt("memory", tell)

    def _process_names(self, count: int) -> List[str]:
        if self._placement.num_processes == count == self._placement.num_devices:
            return [f"rank {rank}: {self._placement.describe(rank)}" for rank in range(count)]
        return [f"process {number}" for number in range(count)]  # which has several devices

    def _tell_views(self, at_any_cost: bool) -> None:
        views = self._views.make(at_any_cost)
        if views is None:
            return
        for reporter in self._reporters:
            reporter.viewed(views)

    def _attempt(self, what: str, tell: Callable[[], None]) -> None:
        """In the main process alone; what has failed once is not tried again."""
        if not self._runtime.is_main or what in self._failed:
            return
        try:
            tell()
        except Exception as error:  # whatever it is, it is not the run's
            self._failed.add(what)
            for reporter in self._reporters:
                reporter.note(f"note: reports show no {what} from here on: {type(error).__name__}: {error}")


class ViewMaker:
    """Makes views of the newest saved step, in a small share of the run's time: no process of a pipeline has the whole model."""

    def __init__(
        self,
        config: Config,
        folder: Optional[Path],
        held_out: Optional[Source],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config, self._folder, self._held_out, self._clock = config, folder, held_out, clock
        self._samples: Optional[List[Sample]] = None
        self._begun, self._spent = clock(), 0.0
        self._expected = _guessed_seconds(config)  # that the next views take
        self._newest = -1  # the step of the newest views

    def make(self, at_any_cost: bool) -> Optional[ModelViews]:
        """None where there is no new step, or no time for it."""
        steps = saved_steps(self._folder) if self._folder is not None else []
        if not steps or number_of(steps[-1]) <= self._newest:
            return None
        begun = self._clock()
        if not at_any_cost and self._spent + self._expected > SHARE_FOR_VIEWS * (begun - self._begun):
            return None
        try:
            views = self._views_of(steps[-1])
        except Exception:
            if not steps[-1].exists():  # pruned meanwhile: there is a newer one, for the next time
                return None
            raise
        self._newest, self._expected = views.step, self._clock() - begun
        self._spent += self._expected
        return views

    def _views_of(self, step_folder: Path) -> ModelViews:
        if self._samples is None:
            self._samples = [] if self._held_out is None else read_samples(self._held_out, self._config)
        saved = open_step_folder(str(step_folder), step_folder)
        return model_views(number_of(step_folder), saved, self._samples)


def _guessed_seconds(config: Config) -> float:
    arch = architecture_of(config)
    units = ["embed", *(f"block {index}" for index in range(arch.depth)), "head"]
    return CAUTIOUS_SECONDS + NUM_SAMPLES * sum(count_forward_flops(arch, unit) for unit in units) / CAUTIOUS_FLOPS
