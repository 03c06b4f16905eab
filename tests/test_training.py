"""The loop, with the real loader and the real `single` runtime."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest

from batch import HostBatch
from placement import place
from run_setup import prepare_run
from runtime.base import StepResult
from runtime.single import SingleRuntime
from tests.small import small_config
from training import fit


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
