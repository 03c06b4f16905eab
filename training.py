"""The one loop: `fit` trains, validates and saves.

Nothing here knows which runtime is at work: every process of a run goes through the same lines in the same order.
"""

from __future__ import annotations

import itertools
import math
import signal
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Tuple

import torch

from batch import HostBatch, HostBatches
from checkpoint import files_of, restore_weights
from dataset.bad_images import FILE_NAME
from errors import UserError
from evaluation.evaluate import evaluate
from evaluation.findings import findings_of
from optimization import learning_rate_of
from reporting.base import Reporter
from reporting.records import StepRecord, Summary, ValidationRecord
from stop_signal import StopSignal

if TYPE_CHECKING:
    from checkpoint import Progress
    from config import Config
    from dataset.bad_images import BadImageLog
    from dataset.loader import EvalLoader, TrainLoader
    from evaluation.metrics import EvalResult
    from insight.observing import Observer
    from runtime.base import Runtime, StepResult
    from saving import Saver
    from weights.card import ModelCard

WARM_UP_STEPS = 2  # left out of the mean throughput: memory is allocated and code compiled in them


@dataclass
class Run:
    """What one training run works with; reporters only in the main process."""

    config: Config
    runtime: Runtime
    train: TrainLoader
    validation: Optional[EvalLoader]
    reporters: List[Reporter]
    folder: Optional[Path]
    progress: Progress
    card: ModelCard
    bad_images: BadImageLog
    saver: Optional[Saver]  # where there is a folder
    observer: Observer
    next_command: Optional[str] = None
    resume_command: Optional[str] = None
    last_finite: str = ""  # the figures of the newest step in which all were finite
    evaluated: int = 0  # validation images so far, of all passes
    evaluation_seconds: float = 0.0

    @property
    def num_steps(self) -> int:
        return number_of_steps(self.config, self.train.steps_per_epoch, self.progress.shift)

    def validating(self) -> Callable[[int], None]:
        """What `evaluate` is to call after each batch of a pass over the validation set, so that reports hear how far it is."""
        assert self.validation is not None
        total, batches = len(self.validation), itertools.count(1)

        def progressed(num_samples: int) -> None:
            done = next(batches)
            for reporter in self.reporters:
                reporter.validating(done, total)

        return progressed

    def note(self, *texts: str) -> None:
        """Tells the user something, once, from the main process."""
        for text in texts:
            for reporter in self.reporters:
                reporter.note(text)


def number_of_steps(config: Config, steps_per_epoch: int, shift: int = 0) -> int:
    """Host steps of a run: `epochs` if given, else `training_steps`. `shift`: see `checkpoint.Progress`."""
    return config.epochs * steps_per_epoch + shift if config.epochs else config.training_steps


class Stopwatch:
    """Mean throughput over the steps after the first few."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.steps = 0
        self._images = 0
        self._seconds = 0.0
        self._data_seconds = 0.0

    @property
    def warming_up(self) -> bool:
        return self.steps <= WARM_UP_STEPS

    def count(self, images: int, seconds: float, data_seconds: float) -> None:
        self.steps += 1
        if not self.warming_up:
            self._images += images
            self._seconds += seconds
            self._data_seconds += data_seconds

    def images_per_second(self) -> Optional[float]:
        return self._images / self._seconds if self._seconds else None

    def data_wait_share(self) -> Optional[float]:
        return self._data_seconds / self._seconds if self._seconds else None


def fit(run: Run) -> int:
    """Trains to the end, or until a signal or a non-finite gradient stops the run. Returns the exit code."""
    try:
        return _fit(run)
    except Exception:
        if run.saver is not None:
            run.saver.give_up()
        raise
    finally:
        for reporter in run.reporters:  # after an error, too: the terminal's cursor comes back, events get written
            reporter.close()


def _fit(run: Run) -> int:
    config, progress = run.config, run.progress
    watch = Stopwatch()
    code = 0
    traced = min(WARM_UP_STEPS, run.num_steps - progress.step - 1)  # the steps before the one that is measured
    with StopSignal() as stop, closing(run.runtime.feed(_host_batches(run))) as batches:
        _prepare(run)
        if progress.step and progress.validated_step != progress.step:
            _save_if_due(
                run, _validate_if_due(run, last=False), last=False
            )  # a signal came between step and validation
        for batch, wait in _timed(batches):
            is_traced = watch.steps == traced
            if is_traced:
                run.observer.trace_next_step()
            begun = time.perf_counter()
            learning_rate = _learning_rate(run)
            result = run.runtime.train_step(batch, learning_rate, progress.updates)
            progress.step += 1
            progress.updates += config.device_iterations
            seconds = wait + time.perf_counter() - begun
            watch.count(config.samples_per_step, seconds, wait)
            _report_step(run, result, learning_rate, seconds, wait, watch.warming_up)
            if is_traced:
                run.observer.tell_timeline(progress.step, seconds - wait)
            _report_bad_images(run, batch)
            _stop_on_nonfinite(run, result)
            code = run.runtime.maximum(128 + stop.number if stop.number else 0)
            is_best = _validate_if_due(run, last=code != 0)
            ends = code != 0 or _no_longer_improves(run)
            _save_if_due(run, is_best, last=ends)
            _report_saved(run)
            if progress.validated_step == progress.step and not ends:
                run.observer.after_validation(progress.step)
            if ends:
                break
    _finish(run, watch, code)
    return code


def _prepare(run: Run) -> None:
    """Before the clock of the first step starts. A run that has all its steps needs nothing."""
    if run.progress.step < run.num_steps:
        evaluates = run.validation is not None and run.config.validation_epochs > 0
        run.note(*run.runtime.prepare(evaluates, run.train.multi_label))


def _host_batches(run: Run) -> HostBatches:
    """The host batches from where the run is to its end, across epochs. They may be read ahead of the steps."""
    position, left = run.progress.position, run.num_steps - run.progress.step
    while left > 0 and not _no_longer_improves(run):
        epoch, start = divmod(position, run.train.steps_per_epoch)
        for batch in itertools.islice(run.train.epoch(epoch, start), left):
            yield batch
            position, left = position + 1, left - 1


def _timed(batches: Iterator[HostBatch]) -> Iterator[Tuple[HostBatch, float]]:
    """Each batch with the seconds that it was waited for."""
    while True:
        begun = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - begun


def _learning_rate(run: Run) -> float:
    """Of the next host step. Where a run is given in epochs, the schedule is by them: it does not jump with the batch size."""
    shift = run.progress.shift if run.config.epochs else 0
    return learning_rate_of(run.config, run.progress.step - shift, run.num_steps - shift)


def _report_step(
    run: Run, result: StepResult, learning_rate: float, seconds: float, wait: float, warming_up: bool
) -> None:
    record = StepRecord(
        step=run.progress.step,
        num_steps=run.num_steps,
        epoch=run.progress.position / run.train.steps_per_epoch,
        num_epochs=(run.num_steps - run.progress.shift) / run.train.steps_per_epoch,
        learning_rate=learning_rate,
        loss=result.loss,
        accuracy=result.accuracy,
        images_per_second=run.config.samples_per_step / seconds,
        step_seconds=seconds,
        data_wait_seconds=wait,
        grad_norm=result.grad_norm,
        loss_scale=result.loss_scale,
        warming_up=warming_up,
    )
    for reporter in run.reporters:
        reporter.step(record)
        if result.skipped_updates and not _must_stop(run, result):
            updates = f"{result.skipped_updates} update{'s' * (result.skipped_updates > 1)}"
            scale = f" at loss scale {result.loss_scale:g}" if result.loss_scale != 1.0 else ""
            reporter.note(f"step {record.step}: {updates} left out{scale}: {result.nonfinite} was not finite")
    if not result.skipped_updates and math.isfinite(result.loss):
        norm = "" if result.grad_norm is None else f", gradient norm {result.grad_norm:.4g}"
        run.last_finite = f"step {record.step}, loss {result.loss:.4g}{norm}, loss scale {result.loss_scale:g}"


def _report_bad_images(run: Run, batch: HostBatch) -> None:
    """Says how many images of the step could not be read, over all replicas, where the policy is to go on without."""
    if run.config.bad_images != "skip":
        return
    count = int(run.runtime.sum_totals(torch.tensor([float(batch.num_replaced)], dtype=torch.float64))[0])
    if count:
        listed = f"; all are in {run.folder / FILE_NAME}" if run.folder is not None else ""
        example = f" ({run.bad_images.last})" if batch.num_replaced else ""
        run.note(f"step {run.progress.step}: the next images stand in for {count} that cannot be read{example}{listed}")


def _must_stop(run: Run, result: StepResult) -> bool:
    return run.config.on_nonfinite == "stop" and (result.must_stop or not math.isfinite(result.loss))


def _stop_on_nonfinite(run: Run, result: StepResult) -> None:
    """Policy `stop`: the bad update was not applied, so the weights saved here are the last good ones."""
    if not _must_stop(run, result):
        return
    step, saved = run.progress.step, ""
    if run.runtime.makes_every_update:
        saved = " The update that did it was made and is not saved: --resume goes on from the newest step."
    elif run.saver is not None:
        try:
            run.saver.save(run.progress)
            run.saver.wait()
            saved = f" The weights before it are in {run.folder}/step_{step}."
        except UserError as error:
            saved = f" {str(error).splitlines()[0]}"
    whose = result.nonfinite or "the loss"
    others = ", set max_grad_norm, or leave such updates out with --on-nonfinite skip"
    if run.runtime.makes_every_update:
        others = ", or set max_grad_norm" if run.config.optimizer != "LAMB" else ""
    elif run.config.combines_accumulators:  # which does neither
        others = ", or give --use-combined-accum false"
    last = f"The last finite values: {run.last_finite}." if run.last_finite else "No step before it was finite."
    raise UserError(
        f"step {step}: {whose} is not finite (loss {result.loss:.4g}, loss scale {result.loss_scale:g}). {last}{saved}\n"
        f"       Lower learning_rate or loss_scaling{others}."
    )


def _validate_if_due(run: Run, last: bool) -> bool:
    """Validates after every `validation_epochs` epochs and at the end. Returns whether the result is the best so far.

    With averaged weights these are validated, too, and it is they that are judged.
    """
    progress, every = run.progress, run.config.validation_epochs
    if run.validation is None or not every or last:
        return False
    at_end = progress.step == run.num_steps
    if progress.position % (every * run.train.steps_per_epoch) and not at_end:
        return False
    if run.config.ema_decay:
        _validate(run, may_be_best=False)
        with run.runtime.averaged():
            is_best = _validate(run, averaged=True)
    else:
        is_best = _validate(run)
    progress.validated_step = progress.step
    return is_best


def _validate(run: Run, averaged: bool = False, may_be_best: bool = True) -> bool:
    """One pass over the validation set. Returns whether the result is the best so far."""
    assert run.validation is not None
    begun = time.perf_counter()
    progress = run.progress
    result = evaluate(run.runtime, run.validation, run.config.loss, run.validating())
    seconds = time.perf_counter() - begun  # what follows is for reports
    is_best = may_be_best and _is_best(progress, result)
    if is_best:
        progress.best_top1, progress.best_auc, progress.best_step = result.top1, result.auc, progress.step
    if may_be_best:
        progress.validations_since_best = 0 if is_best else progress.validations_since_best + 1
    record = ValidationRecord(
        step=progress.step,
        epoch=progress.position / run.train.steps_per_epoch,
        loss=result.loss,
        top1=result.top1,
        top5=result.top5,
        num_samples=result.num_samples,
        seconds=seconds,
        is_best=is_best,
        multi_label=result.multi_label,
        averaged=averaged,
        auc=result.auc,
    )
    run.evaluated, run.evaluation_seconds = run.evaluated + result.num_samples, run.evaluation_seconds + seconds
    for reporter in run.reporters:
        reporter.validated(record)
    if run.reporters:
        findings = findings_of(result.outcome, run.validation, progress.step, averaged)
        for reporter in run.reporters:
            reporter.found(findings)
    return is_best


def _is_best(progress: Progress, result: EvalResult) -> bool:
    """By AUC where there is one, and never again by the share of right labels once there was; else by top-1."""
    if result.auc is not None:
        return progress.best_auc is None or result.auc > progress.best_auc
    return progress.best_auc is None and (progress.best_top1 is None or result.top1 > progress.best_top1)


def _no_longer_improves(run: Run) -> bool:
    """Whether `early_stopping` ends the run."""
    limit = run.config.early_stopping
    return limit is not None and run.progress.validations_since_best >= limit


def _save_if_due(run: Run, is_best: bool, last: bool) -> None:
    """Saves every `checkpoint_save_steps` steps, at the end, and where validation was the best so far."""
    if run.saver is None:
        return
    keep_best = is_best and run.config.keep_best
    step = run.progress.step
    is_due = last or step == run.num_steps or step % run.config.checkpoint_save_steps == 0
    if is_due or keep_best:
        run.saver.save(run.progress, is_best=keep_best, only_best=not is_due)


def _report_saved(run: Run) -> None:
    """Tells of the steps that have come onto the disk since the last time."""
    for record in run.saver.poll() if run.saver is not None else ():
        for reporter in run.reporters:
            reporter.saved(record)


def _restore_best(run: Run) -> None:
    """The weights of the best validated step, read back from the run folder and validated once more. A resumed run goes on from
    the last step all the same. Raises UserError where the best step's files are damaged.
    """
    best, saver = run.progress.best_step, run.saver
    if saver is None or run.validation is None or not run.config.keep_best:
        return  # said before the first step, with the keys that are not used
    if best is None or not saver.has(best):
        run.note("restore_best: no best step is saved, and the last one's weights stay")
    elif best == run.progress.step:
        run.note("restore_best: the last step is the best one")
    else:
        assert run.folder is not None, "it has a saver"
        folder = run.folder / f"step_{best}"
        restore_weights(folder, run.runtime, files_of(folder))
        with run.runtime.averaged() if run.config.ema_decay else nullcontext():
            result = evaluate(run.runtime, run.validation, run.config.loss)
        was, score = (100 * (run.progress.best_top1 or 0), 100 * result.top1)
        found = f"{score:.3f} % of {result.num_samples:,} samples, {was:.3f} %"
        if result.auc is not None:  # which has chosen the step
            found = f"AUC {result.auc:.5f} of {result.num_samples:,} samples, {run.progress.best_auc or 0:.5f}"
        run.note(f"restored the weights of the best step, {best:,}: {found} when it was saved")


def _finish(run: Run, watch: Stopwatch, code: int) -> None:
    if run.saver is not None:
        run.saver.wait()
    _report_saved(run)
    if watch.steps:
        run.observer.at_end(run.progress.step, in_a_hurry=code != 0)
    if _no_longer_improves(run):
        run.note(
            f"stopped early: {run.progress.validations_since_best} validations in a row were not better than the best "
            "(a larger --early-stopping goes on)"
        )
    if code == 0 and run.config.restore_best:
        _restore_best(run)
    interrupted = {128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM"}.get(code)
    summary = Summary(
        steps=run.progress.step,
        seconds=time.perf_counter() - watch.started,
        images_per_second=watch.images_per_second(),
        data_wait_share=watch.data_wait_share(),
        best_top1=run.progress.best_top1,
        best_auc=run.progress.best_auc,
        best_step=run.progress.best_step,
        multi_label=run.validation is not None and run.validation.multi_label,
        evaluated_per_second=run.evaluated / run.evaluation_seconds if run.evaluation_seconds else None,
        run_folder=str(run.folder) if run.folder else None,
        next_command=run.resume_command if interrupted else run.next_command,
        interrupted=interrupted,
    )
    for reporter in run.reporters:
        reporter.finished(summary)
    if run.saver is not None and not run.saver.has(run.progress.step):
        raise UserError(
            f"step {run.progress.step}, the run's last, is not saved: its weights are lost.\n"
            "       Make room or the folder writable, and go on with --resume from the newest step that is there."
        )
