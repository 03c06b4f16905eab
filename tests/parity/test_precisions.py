"""Every precision learns what float32 learns; without stochastic rounding small updates are lost."""

from __future__ import annotations

import math
from typing import Any, Dict

import pytest
import torch
from torch import nn

from placement import place_single
from runtime.single import SingleRuntime
from runtime.weight_update import WeightUpdate
from tests.small import host_batch, small_config

STEPS = 30
PRECISIONS: Dict[str, Dict[str, Any]] = {
    "bf16.32": {},
    "16.32": {"auto_loss_scaling": True},
    "16.16": {"auto_loss_scaling": True, "first_order_type": "fp16"},
    "bf16.16": {},
}


def losses(tmp_path: Any, **keys: Any) -> torch.Tensor:
    """The loss of every step, on the same images each time."""
    recipe = {"learning_rate": 0.05, "gradient_accumulation": 2, "micro_batch_size": 4, "weight_decay": 0.01, **keys}
    config = small_config(tmp_path, **recipe)
    runtime = SingleRuntime(config, place_single(config), num_cores=1)
    batch = host_batch(config, runtime.share)
    return torch.tensor([runtime.train_step(batch, 0.05, step).loss for step in range(STEPS)])


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_every_precision_learns_as_float32_does(tmp_path: Any, precision: str) -> None:
    expected = losses(tmp_path, precision="32.32")
    actual = losses(tmp_path, precision=precision, **PRECISIONS[precision])
    assert expected[-1] < 0.2 * expected[0]
    bits = 8 if precision.startswith("bf16") else 11
    # The first loss is a forward pass's rounding; later ones add up what each update's rounding did.
    assert actual[0] == pytest.approx(expected[0].item(), rel=4 * 2.0**-bits)
    assert (actual - expected).abs().max() <= 20 * 2.0**-bits * expected[0]


@pytest.mark.parametrize("precision", ["16.16", "bf16.16"])
def test_updates_smaller_than_a_step_of_16_bits_count_only_if_rounded_stochastically(
    tmp_path: Any, precision: str
) -> None:
    """A thousand updates of 1e-5 on weights of 1, whose neighbours are 5e-4 (fp16) or 4e-3 (bfloat16) below."""
    moved = {}
    for stochastic in (True, False):
        keys = {"precision": precision, "momentum": 0.0, "stochastic_rounding": stochastic, "gradient_accumulation": 1}
        model = nn.Linear(50, 50, bias=False).to(torch.float16 if precision == "16.16" else torch.bfloat16)
        nn.init.ones_(model.weight)
        update = WeightUpdate(small_config(tmp_path, **keys), [model])
        for number in range(1000):
            update.begin(number)
            (model.weight.float().sum() * update.seed).backward()
            update.collect()
            update.apply(1e-5)
        moved[stochastic] = 1.0 - model.weight.float().mean().item()
    assert moved[False] == 0.0
    step = 2.0**-11 if precision == "16.16" else 2.0**-8
    # The mean of 2,500 weights; each has gone down n times of 1000, n binomial.
    deviation = step * math.sqrt(1000 * 1e-5 / step) / 50
    assert moved[True] == pytest.approx(0.01, abs=4 * deviation)
