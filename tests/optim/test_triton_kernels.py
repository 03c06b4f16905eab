"""The kernels against the formulas: rounding to the bit, Adam against torch's. Without a GPU, Triton interprets them."""

from __future__ import annotations

import math
import os
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton")

from optim.rounded_adam import RoundedAdam
from optim.stochastic_rounding import Rounding, _rounded, hash_drawer
from optim.triton_kernels import adam_by_kernel, round_by_kernel

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = [torch.float16, torch.bfloat16]
half_types = pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
SEED = 0xFEDC_BA98_7654_3210 >> 1  # both halves have their highest bits set or not
COUNT = 3001  # no multiple of a block


def drawn(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(COUNT, generator=torch.Generator().manual_seed(seed))


def by_formula(values: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    return _rounded(values, dtype, hash_drawer(seed, values.device)).to(dtype)


@half_types
@pytest.mark.parametrize("scale", [1e-8, 3e-5, 6e-5, 1.0, 3e4])
@pytest.mark.parametrize("seed", [1, SEED, 2**63 - 1])
def test_the_kernel_rounds_as_the_formula_to_the_bit(dtype: torch.dtype, scale: float, seed: int) -> None:
    values = drawn(3, scale)  # no float32 subnormals: the interpreter makes zeros of them in bf16
    values[:8] = torch.tensor([0.0, -0.0, math.inf, -math.inf, 2.0**-14, -(2.0**-14), 65519.0, 2e-38])
    target = torch.full((COUNT,), 7.0, dtype=dtype, device=DEVICE)
    round_by_kernel(target, values.to(DEVICE), seed)
    assert torch.equal(target.cpu().view(torch.int16), by_formula(values, dtype, seed).view(torch.int16))


@half_types
def test_the_kernel_keeps_every_nan(dtype: torch.dtype) -> None:
    patterns = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32)
    target = torch.zeros(4, dtype=dtype, device=DEVICE)
    round_by_kernel(target, patterns.view(torch.float32).to(DEVICE), SEED)
    assert target.isnan().all()


@pytest.mark.parametrize("decoupled", [False, True], ids=["Adam", "AdamW"])
def test_the_kernel_steps_float32_weights_as_torch_does(decoupled: bool) -> None:
    weight, state = drawn(1).to(DEVICE), [torch.zeros(COUNT, device=DEVICE) for _ in range(2)]
    reference = nn.Parameter(drawn(1).double())
    keys: Dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = (torch.optim.AdamW if decoupled else torch.optim.Adam)([reference], **keys)
    for step in range(1, 4):
        gradient = drawn(10 + step)
        kernel_step(weight, 4.0 * gradient, state, step, decoupled, factor=0.25)
        reference.grad = gradient.double()
        optimizer.step()
    # Some roundings of float32 each step, of numbers up to 4.
    torch.testing.assert_close(weight.cpu().double(), reference.detach(), rtol=1e-6, atol=1e-6)


@half_types
def test_what_the_kernel_stores_in_16_bits_is_rounded_by_the_formula(dtype: torch.dtype) -> None:
    weight, state = drawn(1).to(dtype).to(DEVICE), [torch.zeros(COUNT, dtype=dtype, device=DEVICE) for _ in range(2)]
    wide, wide_state = weight.float(), [value.float() for value in state]
    kernel_step(weight, drawn(2), state, 1, True, seeds=(5, SEED, 7))
    kernel_step(wide, drawn(2), wide_state, 1, True)
    for stored, exact, seed in zip([weight, *state], [wide, *wide_state], (5, SEED, 7)):
        same = stored.cpu() == by_formula(exact.cpu(), dtype, seed)
        assert same.double().mean() > 0.999  # compilers may round a product and a sum as one, once in a while


def test_the_kernel_leaves_all_as_it_is_where_the_device_says_so() -> None:
    weight, state = drawn(1).to(DEVICE), [drawn(2).abs().to(DEVICE), drawn(3).abs().to(DEVICE)]
    before = [value.clone() for value in (weight, *state)]
    kernel_step(weight, torch.full((COUNT,), math.nan), state, 1, True, is_skipped=1.0)
    assert all(torch.equal(now, then) for now, then in zip((weight, *state), before))


@half_types
def test_the_optimiser_goes_on_from_its_saved_state_to_the_bit(dtype: torch.dtype) -> None:
    whole, parted = optimiser(dtype), optimiser(dtype)
    for number in range(4):
        step(whole, number, skip=number == 1)
    for number in range(2):
        step(parted, number, skip=number == 1)
    again = optimiser(dtype)
    again._parameters["w"].data.copy_(parted._parameters["w"].data)
    assert float(parted.state()["w.step"]) == 1.0  # of two updates one was left out
    again.load_state(parted.state())
    for number in range(2, 4):
        step(again, number)
    assert torch.equal(again._parameters["w"], whole._parameters["w"])
    assert all(torch.equal(value, whole.state()[name]) for name, value in again.state().items())


def optimiser(dtype: torch.dtype) -> RoundedAdam:
    return RoundedAdam(
        {"w": nn.Parameter(drawn(1).to(DEVICE, dtype))},
        {"w": {"lr_scale": 0.5, "weight_decay": 0.1}},
        decoupled=True,
        betas=(0.9, 0.99),
        eps=1e-8,
        state_types={"exp_avg": dtype, "exp_avg_sq": torch.float32},
        rounding=Rounding(True, 3),
    )


def step(optimiser: RoundedAdam, number: int, skip: bool = False) -> None:
    optimiser._rounding.update = number
    is_skipped = torch.tensor(float(skip), device=DEVICE)
    gradient = drawn(20 + number).to(DEVICE, optimiser._parameters["w"].dtype)
    optimiser.step({"w": gradient}, torch.tensor(0.5, device=DEVICE), 0.01, is_skipped)
    if skip:
        optimiser.was_skipped()


def kernel_step(
    weight: Tensor, gradient: Tensor, state: List[Tensor], number: int, decoupled: bool, **keys: Any
) -> None:
    adam_by_kernel(
        weight,
        gradient.to(DEVICE),
        *state,
        factor=torch.tensor(keys.get("factor", 1.0), device=DEVICE),
        is_skipped=torch.tensor(keys.get("is_skipped", 0.0), device=DEVICE),
        step=number,
        learning_rate=0.01,
        weight_decay=0.1,
        decoupled=decoupled,
        beta1=0.9,
        beta2=0.999,
        eps=1e-6,
        seeds=keys.get("seeds"),
    )
