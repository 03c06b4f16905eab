"""A weight update on a GPU waits once, leaves out by itself what is not finite, and goes on from what was saved."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch

from tests.gpu.devices import assert_equal, late_runtime, on_each_device, plain_runtime, state_of, train, weights_of
from tests.small import host_batch

ADAMW = {"optimizer": "AdamW", "learning_rate": 1e-3}
UPDATES: List[Dict[str, Any]] = [
    {"max_grad_norm": 0.01, "ema_decay": 0.9},
    {**ADAMW, "max_grad_norm": 0.01, "ema_decay": 0.9},
    {**ADAMW, "precision": "bf16.32"},
]
names = ["SGD", "AdamW", "bf16.32"]


@pytest.mark.parametrize("keys", UPDATES, ids=names)
@on_each_device
def test_a_host_step_reads_from_the_device_once(
    tmp_path: Any, device: str, keys: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = late_runtime(tmp_path, device, **keys)
    train(runtime, 2)
    batch, reads = host_batch(runtime.config, runtime.share, 2), []
    tolist = torch.Tensor.tolist

    def reading(tensor: Any) -> Any:
        reads.append(tensor)
        _refuse_to_wait(device, False)
        try:
            return tolist(tensor)
        finally:
            _refuse_to_wait(device, True)

    def refused(*arguments: Any) -> Any:
        raise AssertionError("a tensor is read")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", reading)
        for name in ("item", "__float__", "__int__", "__bool__", "cpu", "numpy"):
            patch.setattr(torch.Tensor, name, refused)
        _refuse_to_wait(device, True)
        try:
            result = runtime.train_step(batch, 1e-3, 2)
        finally:
            _refuse_to_wait(device, False)
    assert len(reads) == 1
    assert 0 < result.loss < 10


def _refuse_to_wait(device: str, refuse: bool) -> None:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error" if refuse else "default")


LEFT_OUT = [*UPDATES, {**ADAMW, "precision": "bf16.16"}, {"optimizer": "LAMB", "learning_rate": 1e-3}]


@pytest.mark.parametrize("bad_step", [0, 1])
@pytest.mark.parametrize("keys", LEFT_OUT, ids=[*names, "bf16.16", "LAMB"])
@on_each_device
def test_what_is_not_finite_is_left_out_named_and_without_a_trace(
    tmp_path: Any, device: str, keys: Dict[str, Any], bad_step: int
) -> None:
    """The run goes on as one does that never made the bad step."""
    bad, good = (late_runtime(tmp_path, device, on_nonfinite="skip", **keys) for _ in range(2))
    train(bad, bad_step)
    train(good, bad_step)
    before = weights_of(bad)
    hook = bad.update.parameters["blocks.2.mlp.fc1.weight"].register_hook(lambda gradient: gradient * float("inf"))
    (result,) = train(bad, 1, first=bad_step)
    hook.remove()
    assert (result.skipped_updates, result.must_stop) == (1, False)
    assert result.nonfinite.startswith("the gradient of blocks.2.mlp.fc1.weight in stage 0")
    assert_equal(weights_of(bad), before)
    (last,), (wanted,) = (train(runtime, 1, first=bad_step + 1) for runtime in (bad, good))
    assert (last.loss, last.grad_norm, last.skipped_updates) == (wanted.loss, wanted.grad_norm, 0)
    assert_equal(weights_of(bad), weights_of(good))
    assert_equal(state_of(bad), state_of(good))
    if keys.get("ema_decay"):
        # How fast an average follows depends on the number of the update, which counts those left out.
        assert_equal(weights_of(bad, averaged=True), weights_of(good, averaged=True))


@on_each_device
def test_policy_stop_ends_a_host_step_at_the_bad_update(tmp_path: Any, device: str) -> None:
    runtime = late_runtime(tmp_path, device, device_iterations=3)
    before = weights_of(runtime)
    runtime.update.parameters["head.weight"].register_hook(lambda gradient: gradient * float("nan"))
    (result,) = train(runtime, 1)
    assert (result.skipped_updates, result.must_stop) == (1, True)
    assert_equal(weights_of(runtime), before)


@on_each_device
def test_an_automatic_loss_scale_takes_the_same_way(tmp_path: Any, device: str) -> None:
    keys = {"precision": "16.16", "auto_loss_scaling": True, "loss_scaling": 2.0**30, **ADAMW}
    expected, actual = plain_runtime(tmp_path, **keys), late_runtime(tmp_path, device, **keys)
    scales = [[result.loss_scale for result in train(runtime, 6)] for runtime in (expected, actual)]
    assert scales[0] == scales[1]
    assert len(set(scales[0])) > 1


RESUMED = [*UPDATES, {**ADAMW, "precision": "bf16.16", "first_order_type": "fp16"}]


@pytest.mark.parametrize("keys", RESUMED, ids=[*names, "bf16.16"])
@on_each_device
def test_a_resumed_run_has_the_weights_of_one_that_never_stopped(
    tmp_path: Any, device: str, keys: Dict[str, Any]
) -> None:
    whole, first, second = (late_runtime(tmp_path, device, **keys) for _ in range(3))
    train(whole, 4)
    train(first, 2)
    second.load_weights(weights_of(first), weights_of(first, averaged=True) if keys.get("ema_decay") else None)
    second.load_optimizer_state(state_of(first))
    train(second, 2, first=2)
    assert_equal(weights_of(second), weights_of(whole))
    assert_equal(state_of(second), state_of(whole))
