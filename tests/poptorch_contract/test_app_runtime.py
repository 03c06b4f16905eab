"""The life of the IPU runtime: what it compiles and when, who has the IPUs, what comes back to the host, what is saved."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch

from errors import UserError
from tests.poptorch_contract.outcomes import ipu_runtime, logits_of, outcome, rate_of, single_runtime, weights_of
from tests.small import host_batch, small_config
from weights.card import card_of

KEYS: Dict[str, Any] = {
    "runtime": "ipu",
    "num_hidden_layers": 2,
    "layers_per_ipu": [1, 1],
    "gradient_accumulation": 4,
    "learning_rate": 0.02,
}


def step(runtime: Any, config: Any, number: int) -> Any:
    return runtime.train_step(
        host_batch(config, runtime.share, number), rate_of(config, number), number * config.device_iterations
    )


def test_each_program_is_compiled_once_and_the_time_is_told(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS)
    runtime = ipu_runtime(config)
    notes = runtime.prepare(evaluates=True)
    assert [note.split(" in ")[0] for note in notes] == ["compiled for training", "compiled for evaluation"]
    assert runtime.prepare(evaluates=True) == []
    for number in range(2):
        step(runtime, config, number)
        logits_of(runtime, config)
    trainer, evaluator = poptorch.stand_in.executors()
    assert (poptorch.stand_in.report(trainer).calls, poptorch.stand_in.report(evaluator).calls) == (2, 2)


def test_validation_between_steps_changes_nothing_and_sees_the_newest_weights(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS)
    runtime, oracle = ipu_runtime(config), single_runtime(config)
    for number in range(4):
        step(runtime, config, number)
        step(oracle, config, number)
        torch.testing.assert_close(logits_of(runtime, config), logits_of(oracle, config), rtol=1e-5, atol=1e-5)
    weights, expected = weights_of(runtime), weights_of(oracle)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-6)


def test_the_programs_take_turns_on_the_ipus(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS)
    runtime = ipu_runtime(config)
    runtime.prepare(evaluates=True)
    trainer, evaluator = poptorch.stand_in.executors()
    step(runtime, config, 0)
    assert (trainer.isAttachedToDevice(), evaluator.isAttachedToDevice()) == (True, False)
    logits_of(runtime, config)
    assert (trainer.isAttachedToDevice(), evaluator.isAttachedToDevice()) == (False, True)
    runtime.close()
    assert not any(executor.isCompiled() for executor in (trainer, evaluator))


def test_the_learning_rate_follows_the_schedule(poptorch: Any, tmp_path: Any) -> None:
    """Rates of 0, so that only a rate that reaches the IPU moves the weights."""
    config = small_config(tmp_path, **{**KEYS, "momentum": 0.0})
    runtime = ipu_runtime(config)
    before = weights_of(runtime)
    runtime.train_step(host_batch(config, runtime.share, 0), 0.0, 0)
    assert all(torch.equal(before[name], value) for name, value in weights_of(runtime).items())
    runtime.train_step(host_batch(config, runtime.share, 1), 0.5, 1)
    assert any(not torch.equal(before[name], value) for name, value in weights_of(runtime).items())


def test_loaded_weights_reach_both_programs(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS)
    other = single_runtime(small_config(tmp_path, **{**KEYS, "runtime": "single", "random_seed": 7}))
    wanted = logits_of(other, config)
    for attached in ("neither", "trainer", "evaluator"):
        poptorch.stand_in.reset()
        runtime = ipu_runtime(config)
        if attached != "neither":
            step(runtime, config, 0)
        if attached == "evaluator":
            logits_of(runtime, config)
        runtime.load_weights(weights_of(other))
        torch.testing.assert_close(logits_of(runtime, config), wanted, rtol=1e-5, atol=1e-5)
        runtime.train_step(host_batch(config, runtime.share, 1), 0.0, 1)  # the trainer's weights are those, too
        torch.testing.assert_close(logits_of(runtime, config), wanted, rtol=1e-5, atol=1e-5)


OPTIMIZERS = [
    {"optimizer": "SGD"},
    {"optimizer": "AdamW", "learning_rate": 1e-3, "adam_eps": 1e-3},
    {"optimizer": "LAMB", "learning_rate": 1e-3, "adam_eps": 1e-3},
    {"hidden_dropout_prob": 0.3},
    {"precision": "16.16", "auto_loss_scaling": True, "loss_scaling": 16.0},
]


@pytest.mark.parametrize("keys", OPTIMIZERS, ids=str)
def test_a_run_goes_on_from_what_was_saved_as_if_never_stopped(
    poptorch: Any, tmp_path: Any, keys: Dict[str, Any]
) -> None:
    config = small_config(tmp_path, **{**KEYS, **keys})
    whole = outcome(ipu_runtime(config), config, 4)
    poptorch.stand_in.reset()
    runtime = ipu_runtime(config)
    for number in range(2):
        step(runtime, config, number)
    weights, state = weights_of(runtime), runtime.optimizer_state()[0]
    assert {name.rsplit(".", 1)[0] for name in state} <= set(runtime.parameter_names())
    runtime.close()
    poptorch.stand_in.reset()
    again = ipu_runtime(config)
    again.load_weights(weights)
    again.load_optimizer_state({name: value.clone() for name, value in state.items()})
    rest = outcome(again, config, 2, first_step=2)
    assert rest["figures"] == whole["figures"][2:]
    assert all(torch.equal(rest["weights"][name], value) for name, value in whole["weights"].items())


def test_a_constant_rate_survives_a_resume(poptorch: Any, tmp_path: Any) -> None:
    """What is put back includes the rate of the step before: the first step's must win, even where it is the peak."""
    config = small_config(tmp_path, **{**KEYS, "momentum": 0.0})
    runtime = ipu_runtime(config)
    runtime.train_step(host_batch(config, runtime.share, 0), 0.001, 0)
    weights, state = weights_of(runtime), runtime.optimizer_state()[0]
    runtime.train_step(host_batch(config, runtime.share, 1), 0.02, 1)
    expected = weights_of(runtime)
    runtime.close()
    poptorch.stand_in.reset()
    again = ipu_runtime(config)
    again.load_weights(weights)
    again.load_optimizer_state(state)
    again.train_step(host_batch(config, again.share, 1), 0.02, 1)
    assert all(torch.equal(value, expected[name]) for name, value in weights_of(again).items())


def test_automatic_loss_scaling_is_reported_and_saved(poptorch: Any, tmp_path: Any) -> None:
    keys = {"precision": "16.16", "auto_loss_scaling": True, "loss_scaling": 2.0, "device_iterations": 2}
    config = small_config(tmp_path, **{**KEYS, **keys})
    runtime = ipu_runtime(config)
    scales = [step(runtime, config, number).loss_scale for number in range(3)]
    # Small gradients: it doubles after every update, two in a step.
    assert scales == [4.0, 16.0, 64.0]
    assert runtime.loss_scale_factor == 64.0


def test_evaluation_leaves_nothing_out(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(
        tmp_path, **KEYS, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5, drop_path_rate=0.5
    )
    runtime, oracle = ipu_runtime(config), single_runtime(config)
    runtime.prepare(evaluates=False)  # the model is in training mode now
    torch.testing.assert_close(logits_of(runtime, config), logits_of(oracle, config), rtol=1e-5, atol=1e-5)


def test_dropout_draws_anew_in_every_micro_batch_and_step(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **{**KEYS, "hidden_dropout_prob": 0.5, "micro_batch_size": 1})
    runtime = ipu_runtime(config)
    batch = host_batch(config, runtime.share)
    batch.images[:] = batch.images[:1].clone()
    batch.targets[:] = 1
    runtime.prepare(evaluates=False)
    losses = torch.cat([runtime._trainer(*runtime._inputs(batch))[0] for _ in range(2)])
    assert len(set(losses.tolist())) == len(losses) == 8


def test_weights_that_went_bad_are_not_saved(poptorch: Any, tmp_path: Any) -> None:
    """The update that does it is made after its step's loss, which is still finite."""
    from checkpoint import Progress
    from saving import Saver

    config = small_config(tmp_path, **KEYS, checkpoint_output_dir=str(tmp_path), background_save=False)
    runtime = ipu_runtime(config)
    assert runtime.makes_every_update
    saver = Saver(tmp_path, runtime, config, card_of(config), lambda text: None)
    step(runtime, config, 0)
    saver.save(Progress(step=1, optimizer="SGD"))
    runtime.load_weights({"head.bias": torch.full((config.num_labels,), float("nan"))})
    with pytest.raises(UserError, match=r"step 2 is not saved: its weights are no longer finite \(head.bias\)"):
        saver.save(Progress(step=2, optimizer="SGD"))
    assert [folder.name for folder in sorted(tmp_path.glob("step_*"))] == ["step_1"]


STATE_TYPES = [
    ({"first_order_type": "fp16"}, {"first_order_type": "fp32"}),
    ({"accum_type": "fp16"}, {"accum_type": "fp32"}),
    ({"use_combined_accum": True}, {}),
    ({"optimizer": "AdamW"}, {"optimizer": "AdamW", "second_order_type": "fp16"}),
    ({"precision": "16.32"}, {"precision": "16.16"}),
]


@pytest.mark.parametrize(("then", "now"), STATE_TYPES, ids=str)
def test_a_state_of_other_types_is_refused(
    poptorch: Any, tmp_path: Any, then: Dict[str, Any], now: Dict[str, Any]
) -> None:
    half = {**KEYS, "precision": "16.16"}
    runtime = ipu_runtime(small_config(tmp_path, **{**half, **then}))
    runtime.prepare(evaluates=False)
    state = runtime.optimizer_state()[0]
    runtime.close()
    with pytest.raises(UserError, match="IPUs cannot convert it"):
        ipu_runtime(small_config(tmp_path, **{**half, **now})).load_optimizer_state(state)


@pytest.mark.parametrize(
    ("now", "begin_anew"),
    [({}, False), ({"replication_factor": 2}, True), ({"layers_per_ipu": [2], "gradient_accumulation": 4}, True)],
    ids=str,
)
def test_on_other_ipus_random_numbers_begin_anew_and_it_is_said(
    poptorch: Any, tmp_path: Any, now: Dict[str, Any], begin_anew: bool
) -> None:
    runtime = ipu_runtime(small_config(tmp_path, **KEYS))
    runtime.prepare(evaluates=False)
    state = runtime.optimizer_state()[0]
    runtime.close()
    again = ipu_runtime(small_config(tmp_path, **{**KEYS, **now}))
    again.load_optimizer_state(state)
    notes = again.prepare(evaluates=False)
    assert any("random numbers begin anew" in note for note in notes) == begin_anew


def test_random_numbers_that_poptorch_refuses_do_not_end_the_run(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS)
    runtime = ipu_runtime(config)
    runtime._rng_state = [1, 2, 3]
    assert "PopTorch does not take the saved random numbers back" in runtime.prepare(evaluates=False)[0]
    assert step(runtime, config, 0).loss > 0


def test_a_finished_run_that_is_validated_compiles_no_training(poptorch: Any, tmp_path: Any) -> None:
    config = small_config(tmp_path, **KEYS)
    logits_of(ipu_runtime(config), config)
    assert len(poptorch.stand_in.executors()) == 1


def test_state_of_another_kind_is_refused(poptorch: Any, tmp_path: Any) -> None:
    import checkpoint

    class Backend:
        backend = "ipu"

    folder = tmp_path / "step_1"
    folder.mkdir()
    checkpoint.write_run_details(folder, checkpoint.Progress(step=1), _Card(), {}, False)
    with pytest.raises(UserError, match="on CPUs or GPUs, and this one is on IPUs"):
        checkpoint.restore(folder, Backend())  # type: ignore[arg-type]


class _Card:
    def to_json(self) -> Dict[str, Any]:
        return {}
