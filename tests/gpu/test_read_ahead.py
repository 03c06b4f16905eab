"""Batches that a thread reads ahead: the same, in order, with their errors where they are due; and a run that is fed by it."""

from __future__ import annotations

import threading
from typing import Any, List

import pytest
import torch

from batch import HostBatch, HostBatches
from placement import place
from run_setup import prepare_run
from runtime.read_ahead import AHEAD, Uploader, read_ahead
from runtime.single import SingleRuntime
from tests.gpu.devices import needs_gpu
from tests.small import small_config
from training import fit


def batches(count: int, read: List[int], fails_at: int = -1) -> HostBatches:
    for step in range(count):
        if step == fails_at:
            raise ValueError("unreadable")
        read.append(step)
        yield HostBatch(0, step, torch.full((1,), step, dtype=torch.uint8), None)


def doubled(batch: HostBatch) -> HostBatch:
    assert batch.images is not None
    return HostBatch(0, batch.step, batch.images * 2, None)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_all_batches_come_in_order(count: int) -> None:
    got = [int(batch.images) for batch in read_ahead(batches(count, []), doubled)]  # type: ignore[arg-type]
    assert got == [2 * step for step in range(count)]


def test_an_error_comes_where_its_batch_is_due() -> None:
    got: List[int] = []
    with pytest.raises(ValueError, match="unreadable"):
        got.extend(batch.step for batch in read_ahead(batches(9, [], fails_at=4), doubled))
    assert got == [0, 1, 2, 3]


def test_no_more_is_read_than_ahead_and_closing_ends_the_thread() -> None:
    before, read = threading.active_count(), []  # type: ignore[var-annotated]
    ahead = read_ahead(batches(100, read), doubled)
    next(ahead)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
    assert len(read) <= 2 + AHEAD + 1  # the two that were taken, and what was under way


def test_a_run_that_reads_ahead_ends_with_the_same_weights(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"training_steps": 7, "iterations": 3, "threads_per_process": 1, "validation_epochs": 1}
    weights = []
    for reads_ahead in (False, True):
        if reads_ahead:
            monkeypatch.setattr(SingleRuntime, "feed", lambda self, given: read_ahead(given, lambda batch: batch))
        config = small_config(tmp_path, **keys)
        run = prepare_run(config, place(config))
        assert fit(run) == 0
        assert run.progress.step == 7
        weights.append({name: value.clone() for name, value in run.runtime.weights()[0].items()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.gpu
@needs_gpu
def test_what_is_uploaded_is_what_was_read() -> None:
    upload = Uploader(torch.device("cuda", 0))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8).pin_memory()
    got = list(read_ahead((HostBatch(0, step, images + step, None) for step in range(5)), upload))
    assert [batch.images.device.type for batch in got if batch.images is not None] == ["cuda"] * 5
    for batch in got:
        assert batch.images is not None
        assert torch.equal(batch.images.cpu(), images + batch.step)


@pytest.mark.gpu
@needs_gpu
def test_a_run_on_a_gpu_goes_through_and_its_loss_is_the_cpus(tmp_path: Any) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        config = small_config(tmp_path, device=device, training_steps=6, compile="off", validation_epochs=0)
        run, seen = prepare_run(config, place(config)), []  # type: ignore[var-annotated]
        for reporter in run.reporters:
            reporter.step = lambda record, seen=seen: seen.append(record.loss)  # type: ignore[method-assign]
        assert fit(run) == 0
        losses.append(seen[:6])
    assert losses[0], "nothing was compared"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
