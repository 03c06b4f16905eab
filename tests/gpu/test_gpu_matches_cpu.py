"""One device gives the numbers of the other: every optimiser and rule of the update, precisions, compilation, recomputation."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
import torch

from tests.gpu.devices import (
    assert_close,
    assert_equal,
    figures,
    late_runtime,
    on_each_device,
    plain_runtime,
    state_of,
    train,
    weights_of,
)
from tests.small import host_batch

# Sums of float32 in another order: some roundings of 6e-8 in each of three updates, which attention and norms multiply.
FLOAT32 = 1e-5
# eps above the rounding noise of zero gradients, which Adam would blow up to whole updates.
ADAM = {"learning_rate": 1e-3, "weight_decay": 0.1, "adam_eps": 1e-3}
VARIANTS: List[Tuple[str, Dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD without momentum", {"momentum": 0.0, "device_iterations": 2}),
    ("Adam", {"optimizer": "Adam", **ADAM}),
    ("AdamW", {"optimizer": "AdamW", **ADAM, "layer_decay": 0.5}),
    ("LAMB", {"optimizer": "LAMB", **ADAM}),
    ("Lion", {"optimizer": "Lion", "learning_rate": 1e-4}),
    ("clipping and an average", {"max_grad_norm": 0.01, "ema_decay": 0.9, "optimizer": "AdamW", **ADAM}),
    ("clipped SGD", {"max_grad_norm": 0.01}),
    ("loss scale and sum", {"reduction_type": "sum", "loss_scaling": 16.0, "learning_rate": 0.01}),
    ("mixup and CutMix", {"mixup": True, "alpha": 0.5, "cutmix": True, "replication_factor": 2}),
    ("frozen blocks", {"freeze_layers": 2}),
    ("recomputation", {"recompute_checkpoint_every_layer": True, "recompute_mid_layers": [1]}),
    ("explicit attention", {"attention": "explicit"}),
]


@pytest.mark.parametrize("keys", [keys for _, keys in VARIANTS], ids=[name for name, _ in VARIANTS])
@on_each_device
def test_losses_weights_and_states_are_those_of_the_cpu(tmp_path: Any, device: str, keys: Dict[str, Any]) -> None:
    expected, actual = plain_runtime(tmp_path, **keys), late_runtime(tmp_path, device, **keys)
    wanted = figures(train(expected, 3))
    assert figures(train(actual, 3)) == pytest.approx(wanted, rel=1e-4 if device == "cuda" else 1e-6)
    # Lion's updates are signs: where gradients are but rounding, as that of the keys' bias, they turn, 2e-4 each time.
    tolerance = 0.2 if keys.get("optimizer") == "Lion" else FLOAT32
    assert_close(weights_of(actual), weights_of(expected), tolerance)
    if keys.get("ema_decay"):
        assert_close(weights_of(actual, averaged=True), weights_of(expected, averaged=True), tolerance)
    assert state_of(actual).keys() == state_of(expected).keys()


@pytest.mark.parametrize("precision", ["bf16.32", "16.32", "bf16.16", "16.16"])
@on_each_device
def test_in_16_bits_the_losses_differ_by_rounding_only(tmp_path: Any, device: str, precision: str) -> None:
    keys = {"precision": precision, "optimizer": "AdamW", **ADAM, "loss_scaling": 64.0, "max_grad_norm": 1.0}
    expected, actual = plain_runtime(tmp_path, **keys), late_runtime(tmp_path, device, **keys)
    wanted = [result.loss for result in train(expected, 4)]
    # bf16 has 8 bits; the loss is about 1.6.
    assert [result.loss for result in train(actual, 4)] == pytest.approx(wanted, abs=0.02)
    again = late_runtime(tmp_path, device, **keys)
    train(again, 4)
    assert_equal(weights_of(again), weights_of(actual))


@on_each_device
def test_stochastic_rounding_is_right_on_average(tmp_path: Any, device: str) -> None:
    """Updates of a hundredth of bf16's steps, each of which rounding to the nearest would lose."""
    from optim.stochastic_rounding import Rounding

    rounding, weight = Rounding(True, 7), torch.ones(20_000, dtype=torch.bfloat16, device=device)
    for update in range(100):
        rounding.update = update
        rounding.write(weight, weight.float() + 2.0**-7 / 100, "weight", "w")
    # 100 draws of 1 %: the mean of 20,000 sums has a deviation of 0.007 of a step.
    assert (weight.float().mean() - 1.0).item() * 2**7 == pytest.approx(1.0, abs=0.035)


@on_each_device
def test_logits_are_those_of_the_cpu(tmp_path: Any, device: str) -> None:
    expected, actual = plain_runtime(tmp_path), late_runtime(tmp_path, device)
    images = host_batch(expected.config, expected.share).images
    wanted, logits = expected.predict(images), actual.predict(images)
    assert wanted is not None and logits is not None
    assert logits.device.type == "cpu"
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["32.32", "bf16.32"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=[pytest.mark.gpu])])
def test_compiled_training_gives_the_same_losses(tmp_path: Any, device: str, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    keys = {"precision": precision, "optimizer": "AdamW", **ADAM}
    plain, compiled = (late_runtime(tmp_path, device, compile=value, **keys) for value in ("off", "on"))
    assert "compiled" in compiled.prepare(evaluates=True)[0]
    tolerance = 1e-4 if precision == "32.32" else 0.02
    wanted = [result.loss for result in train(plain, 3)]
    assert [result.loss for result in train(compiled, 3)] == pytest.approx(wanted, abs=tolerance)


@on_each_device
def test_float32_products_are_of_float32(device: str) -> None:
    from runtime.devices import multiply_as_on_cpus

    multiply_as_on_cpus(torch.device(device))
    left, right = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    product, exact = (left.to(device) @ right.to(device)).cpu().double(), left.double() @ right.double()
    assert (product - exact).norm() / exact.norm() < 1e-6  # TF32 is at 3e-4
