"""The loop, with the real loader and the real `single` runtime."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest
import torch
from torch import Tensor

from batch import HostBatch
from errors import UserError
from placement import place
from reporting.base import Reporter
from reporting.records import ValidationRecord
from run_setup import prepare_run
from runtime.base import StepResult
from runtime.single import SingleRuntime
from tests.small import small_config
from training import Run, fit


@pytest.mark.parametrize("device_iterations", [1, 2])
def test_every_weight_update_draws_its_own_dropout(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, device_iterations: int
) -> None:
    keys: List[Tuple[int, ...]] = []
    train_step = SingleRuntime.train_step

    def recording(runtime: SingleRuntime, batch: HostBatch, learning_rate: float, first_update: int) -> StepResult:
        hook = runtime.model.register_forward_pre_hook(lambda model, _: keys.append(model.dropout_key))
        with hook:
            return train_step(runtime, batch, learning_rate, first_update)

    monkeypatch.setattr(SingleRuntime, "train_step", recording)
    config = small_config(
        tmp_path,
        hidden_dropout_prob=0.1,
        device_iterations=device_iterations,
        gradient_accumulation=2,
        validation_epochs=0,
        threads_per_process=1,
    )
    assert fit(prepare_run(config, place(config))) == 0
    updates, micro_batches = config.training_steps * device_iterations, config.gradient_accumulation
    assert keys == [
        (config.random_seed, update, number) for update in range(updates) for number in range(micro_batches)
    ]


class Listener(Reporter):
    """Counts what it hears."""

    def __init__(self) -> None:
        self.validations: List[int] = []
        self.validating_calls: List[Tuple[int, int]] = []
        self.is_closed = False

    def validating(self, done: int, total: int) -> None:
        self.validating_calls.append((done, total))

    def validated(self, record: ValidationRecord) -> None:
        self.validations.append(record.step)

    def close(self) -> None:
        self.is_closed = True


def tiny_run(tmp_path: Any, **keys: Any) -> Tuple[Run, Listener]:
    config = small_config(tmp_path, threads_per_process=1, **keys)
    run, listener = prepare_run(config, place(config)), Listener()
    run.reporters[:] = [listener]
    return run, listener


def test_a_validation_that_a_signal_cut_off_is_made_up_for(tmp_path: Any) -> None:
    run, listener = tiny_run(tmp_path)
    run.progress.step = 2  # saved there, without the validation of its epoch
    run.progress.validated_step = 1
    assert fit(run) == 0
    assert listener.validations == [2, 3]
    assert fit(run) == 0  # all is done
    assert listener.validations == [2, 3]


def test_a_validation_pass_tells_how_far_it_is_batch_by_batch(tmp_path: Any) -> None:
    run, listener = tiny_run(tmp_path)
    assert run.validation is not None
    total = len(run.validation)
    assert fit(run) == 0
    assert listener.validating_calls == [(done, total) for _ in listener.validations for done in range(1, total + 1)]
    assert listener.validating_calls


def test_averaged_weights_are_validated_beside_the_others_and_judged(tmp_path: Any) -> None:
    run, listener = tiny_run(tmp_path, ema_decay=0.9)
    records: List[ValidationRecord] = []
    listener.validated = records.append  # type: ignore[method-assign]
    assert fit(run) == 0
    assert [record.averaged for record in records] == [False, True] * 3
    plain, averaged = records[-2:]
    assert plain.loss != averaged.loss
    assert not any(record.is_best for record in records[::2])
    assert run.progress.best_top1 == max(record.top1 for record in records[1::2])


def test_what_is_not_finite_is_named_with_its_step_stage_and_the_last_finite_values(tmp_path: Any) -> None:
    run, _ = tiny_run(tmp_path, layers_per_ipu=[2, 2], checkpoint_output_dir=str(tmp_path / "run"))
    train_step = run.runtime.train_step

    def breaking(batch: HostBatch, learning_rate: float, first_update: int) -> StepResult:
        if first_update == 1:
            run.runtime.update.parameters["blocks.3.mlp.fc1.weight"].register_hook(lambda gradient: gradient * 1e39)
        return train_step(batch, learning_rate, first_update)

    run.runtime.train_step = breaking  # type: ignore[method-assign]
    with pytest.raises(UserError) as caught:
        fit(run)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(
        "step 2: the gradient of blocks.3.mlp.fc1.weight in stage 1 (blocks 2-3, head) is not finite"
    )
    assert "The last finite values: step 1, loss " in first
    assert f"The weights before it are in {tmp_path / 'run' / 'step_2'}." in first


def test_an_overflow_of_the_automatic_scale_costs_one_update_and_is_said(tmp_path: Any) -> None:
    keys = {"precision": "16.16", "auto_loss_scaling": True, "loss_scaling": 2.0**30, "training_steps": 30}
    run, listener = tiny_run(tmp_path, iterations=30, **keys)
    notes: List[str] = []
    listener.note = notes.append  # type: ignore[method-assign]
    assert fit(run) == 0
    assert "1 update left out at loss scale 1.07374e+09: the gradient of " in notes[0]
    assert 1 <= len(notes) < 30


def test_a_resume_with_another_optimiser_is_refused(tmp_path: Any) -> None:
    folder = str(tmp_path / "run")
    run, _ = tiny_run(tmp_path, optimizer="AdamW", learning_rate=1e-3, checkpoint_output_dir=folder)
    assert fit(run) == 0
    resume = {"checkpoint_output_dir": folder, "resume_training_from_checkpoint": True, "training_steps": 4}
    with pytest.raises(UserError, match="was trained with optimizer = AdamW; now optimizer = Muon"):
        tiny_run(tmp_path, optimizer="Muon", **resume)
    run, _ = tiny_run(tmp_path, optimizer="AdamW", learning_rate=1e-3, precision="16.16", **resume)
    assert fit(run) == 0


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_reporters_are_closed_after_an_error_too(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, listener = tiny_run(tmp_path)
    monkeypatch.setattr(run.runtime.update, "_norm", lambda gradients: scalar(float("inf")))
    with pytest.raises(UserError, match="step 1: the gradient's norm is not finite"):
        fit(run)
    assert listener.is_closed


def test_policy_stop_leaves_the_weights_of_the_last_good_update(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = tiny_run(tmp_path, device_iterations=3)
    norms = iter([1.0, float("nan"), 1.0])
    steps: List[int] = []
    monkeypatch.setattr(run.runtime.update, "_norm", lambda gradients: scalar(next(norms)))
    monkeypatch.setattr(run.runtime.update._stepper, "step", lambda *arguments: steps.append(1))
    with pytest.raises(UserError, match="is not finite"):
        fit(run)
    assert len(steps) == 1
