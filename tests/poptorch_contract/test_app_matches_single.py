"""The IPU runtime on the stand-in gives the numbers of the single device: losses, accuracies, weights, logits."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
import torch

from tests.poptorch_contract.outcomes import Outcome, ipu_runtime, outcome, single_runtime
from tests.small import small_config

TOLERANCE = 1e-6  # fp32 sums in another order: a few roundings of 6e-8, at these rates
RATE = 0.02
UPDATES = 20
PLANS = [[2], [1, 1], [0, 1, 1, 0]]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("layers", PLANS, ids=["one stage", "two", "four"])
def test_twenty_updates_give_the_weights_of_the_single_device(
    tmp_path: Any, layers: List[int], iterations: int, replicas: int, reduction: str
) -> None:
    accumulation = 2 * len(layers)  # the fewest are one less
    keys: Dict[str, Any] = {
        "layers_per_ipu": layers,
        "gradient_accumulation": accumulation,
        "device_iterations": iterations,
        "replication_factor": replicas,
        "reduction_type": reduction,
        "learning_rate": RATE if reduction == "mean" else RATE / (accumulation * replicas),
    }
    assert_same(tmp_path, keys, UPDATES // iterations)


VARIANTS: List[Tuple[str, Dict[str, Any]]] = [
    ("Adam", {"optimizer": "Adam", "learning_rate": 1e-3, "weight_decay": 0.1, "adam_eps": 1e-3}),
    ("AdamW", {"optimizer": "AdamW", "learning_rate": 1e-3, "weight_decay": 0.1, "adam_eps": 1e-3}),
    ("LAMB", {"optimizer": "LAMB", "learning_rate": 1e-3, "weight_decay": 0.1, "adam_eps": 1e-3}),
    (
        "LAMB, a cap",
        {"optimizer": "LAMB", "learning_rate": 1e-3, "adam_eps": 1e-3, "max_norm": 0.5, "max_norm_bias": 0.5},
    ),
    (
        "LAMB, without bias correction",
        {"optimizer": "LAMB", "learning_rate": 1e-3, "adam_eps": 1e-3, "bias_correction": False},
    ),
    ("weight decay", {"weight_decay": 0.1}),
    ("a loss scale", {"loss_scaling": 64.0}),
    ("clipping", {"max_grad_norm": 0.01}),
    ("layer-wise rates", {"layer_decay": 0.5}),
    ("accumulator and velocity in one", {"use_combined_accum": True}),
    ("mixup", {"mixup": True, "alpha": 0.5}),
    ("CutMix", {"cutmix": True}),
    ("mixup or CutMix for each image", {"mixup": True, "alpha": 0.5, "cutmix": True, "mix_mode": "sample"}),
    ("several labels an image", {"dataset": "csv", "loss": "SigmoidCELoss", "label_smoothing": 0.1}),
    ("weighted positives", {"loss": "SigmoidCELoss", "positive_weights": [0.5, 1.0, 2.0, 4.0, 8.0], "dataset": "csv"}),
    ("several labels, mixed", {"dataset": "csv", "loss": "SigmoidCELoss", "mixup": True, "alpha": 0.5}),
    ("label smoothing", {"label_smoothing": 0.1}),
    ("sigmoid loss", {"loss": "SigmoidCELoss"}),
    ("a mean and deviation for each channel", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}),
    ("representation layer", {"representation_size": 12, "pretrain": True}),
    ("distillation token", {"distillation": "token"}),
    ("two heads in a stage of their own", {"distillation": "heads", "layers_per_ipu": [2, 0]}),
    ("recomputation", {"recompute_checkpoint_every_layer": True, "recompute_mid_layers": [1]}),
    ("sharded state off the chip", {"enable_rts": True, "optimizer_state_offchip": True}),
]


@pytest.mark.parametrize("keys", [keys for _, keys in VARIANTS], ids=[name for name, _ in VARIANTS])
def test_every_rule_of_the_update_holds_on_ipus(tmp_path: Any, keys: Dict[str, Any]) -> None:
    base = {"layers_per_ipu": [1, 1], "replication_factor": 2, "device_iterations": 2, "learning_rate": RATE}
    assert_same(tmp_path, {**base, **keys}, 3)


HALF = [
    {"precision": "16.32", "optimizer": "AdamW", "learning_rate": 1e-3, "adam_eps": 1e-3},
    {"precision": "16.16", "accum_type": "fp32", "stochastic_rounding": False},
    {"precision": "16.16", "stochastic_rounding": False, "auto_loss_scaling": True, "loss_scaling": 16.0},
]


@pytest.mark.parametrize("keys", HALF, ids=lambda keys: f"{keys['precision']} {list(keys)[1]}")
def test_half_precision_is_near_the_single_devices(tmp_path: Any, keys: Dict[str, Any]) -> None:
    """Not equal: the gradient is rounded to 16 bits in other places. Both are near their float32 run by the same measure."""
    base = {"num_hidden_layers": 2, "layers_per_ipu": [1, 1], "learning_rate": RATE, "runtime": "ipu"}
    config = small_config(tmp_path, **{**base, **keys})
    actual, expected = (outcome(build(config), config, 3) for build in (ipu_runtime, single_runtime))
    for ours, theirs in zip(actual["figures"], expected["figures"]):
        assert ours[0] == pytest.approx(theirs[0], rel=2e-3)
    for name, value in expected["weights"].items():
        assert actual["weights"][name].dtype == value.dtype
        torch.testing.assert_close(actual["weights"][name].float(), value.float(), rtol=2**-9, atol=2e-3, msg=name)


def assert_same(tmp_path: Any, keys: Dict[str, Any], num_steps: int) -> None:
    config = small_config(tmp_path, runtime="ipu", num_hidden_layers=2, **keys)
    actual, expected = (outcome(build(config), config, num_steps) for build in (ipu_runtime, single_runtime))
    assert_equal_outcomes(actual, expected)


def assert_equal_outcomes(actual: Outcome, expected: Outcome) -> None:
    for ours, theirs in zip(actual["figures"], expected["figures"]):
        assert ours == pytest.approx(theirs, abs=TOLERANCE, rel=TOLERANCE)
    assert actual["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    torch.testing.assert_close(actual["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
