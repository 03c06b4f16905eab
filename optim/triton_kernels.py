"""Triton kernels for weights of 16 bits on GPUs: stochastic rounding, and Adam with it, in one pass over memory each.

Import it only where `triton` is installed. What the kernels compute is defined by `stochastic_rounding` (its hashed bits) and by
torch's Adam and AdamW; tests hold them to these, on a CPU too (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from optim.hashed_bits import halves_of

_BLOCK = 1024
_DROPPED_BITS = {torch.float16: 13, torch.bfloat16: 16}


@triton.jit
def _mixed(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> 16)) * tl.full((), 0x7FEB352D, tl.uint32)
    x = (x ^ (x >> 15)) * tl.full((), 0x846CA68B, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _cut(values, drawn, bits: tl.constexpr):  # type: ignore[no-untyped-def]
    return (((values.to(tl.uint32, bitcast=True) + drawn) >> bits) << bits).to(tl.float32, bitcast=True)


@triton.jit
def _rounded(values, positions, low, high, bits: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 whose dropped bits are 0: see `stochastic_rounding._rounded`. No bits: the values, for a cast to the nearest."""
    if bits == 0:
        return values
    drawn = _mixed(_mixed(positions.to(tl.uint32) ^ low.to(tl.uint32)) ^ high.to(tl.uint32)) & ((1 << bits) - 1)
    if bits == 13:  # fp16: 2^-14 is its smallest normal number
        shift = tl.where(tl.abs(values) < 0.00006103515625, 0.00006103515625, 0.0)
        shift = tl.where(values < 0, -shift, shift)
        rounded = _cut(values + shift, drawn, bits) - shift
    else:
        rounded = _cut(values, drawn, bits)
    return tl.where(values != values, float("nan"), rounded)


@triton.jit(do_not_specialize=["low", "high"])
def _round_kernel(target, values, count, low, high, bits: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    positions = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = positions < count
    value = tl.load(values + positions, mask=inside, other=0.0)
    tl.store(target + positions, _rounded(value, positions, low, high, bits).to(target.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        *("learning_rate", "l2", "kept", "beta2", "share1", "share2", "bias1", "bias2_root", "eps"),
        *("weight_low", "weight_high", "first_low", "first_high", "second_low", "second_high"),
    ]
)
def _adam_kernel(  # type: ignore[no-untyped-def]
    weights, gradients, firsts, seconds, factor_at, is_skipped_at, count,
    learning_rate, l2, kept, beta2, share1, share2, bias1, bias2_root, eps,
    weight_low, weight_high, first_low, first_high, second_low, second_high,
    weight_bits: tl.constexpr, first_bits: tl.constexpr, second_bits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    positions = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = positions < tl.where(tl.load(is_skipped_at) == 0.0, count, 0)
    weight = tl.load(weights + positions, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(gradients + positions, mask=inside, other=0.0).to(tl.float32) * tl.load(factor_at)
    first = tl.load(firsts + positions, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(seconds + positions, mask=inside, other=0.0).to(tl.float32)
    gradient += l2 * weight  # Adam's decay
    weight *= kept  # AdamW's
    first += share1 * (gradient - first)
    second = beta2 * second + share2 * gradient * gradient
    weight -= learning_rate / bias1 * first / (tl.sqrt(second) / bias2_root + eps)
    new_weight = _rounded(weight, positions, weight_low, weight_high, weight_bits)
    new_first = _rounded(first, positions, first_low, first_high, first_bits)
    new_second = _rounded(second, positions, second_low, second_high, second_bits)
    tl.store(weights + positions, new_weight.to(weights.dtype.element_ty), mask=inside)
    tl.store(firsts + positions, new_first.to(firsts.dtype.element_ty), mask=inside)
    tl.store(seconds + positions, new_second.to(seconds.dtype.element_ty), mask=inside)


def _keys_of(seed: int) -> List[int]:
    """As signed numbers: Triton makes a kernel of its own for arguments that need 64 bits."""
    return [half - 2**32 if half >= 2**31 else half for half in halves_of(seed)]


def round_by_kernel(target: Tensor, values: Tensor, seed: int) -> None:
    """`stochastic_rounding.round_stochastically` with hashed bits of `seed`. Both contiguous."""
    count = target.numel()
    if count:
        low, high = _keys_of(seed)
        bits = _DROPPED_BITS[target.dtype]
        _round_kernel[(triton.cdiv(count, _BLOCK),)](target, values, count, low, high, bits=bits, block=_BLOCK)


def adam_by_kernel(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    factor: Tensor,
    is_skipped: Tensor,
    step: int,
    learning_rate: float,
    weight_decay: float,
    decoupled: bool,
    beta1: float,
    beta2: float,
    eps: float,
    seeds: Optional[Tuple[int, int, int]],
) -> None:
    """One step of Adam (decay as L2) or AdamW (`decoupled`) from `factor` times the gradient, in place, in float32.

    All contiguous, of one shape, and of any float type. What has 16 bits is rounded stochastically by hashed bits of `seeds` (of
    weight, exp_avg and exp_avg_sq), or to the nearest without. `step` counts from 1. `factor` and `is_skipped` are float32
    scalars on the device; where the latter is not 0, nothing changes.
    """
    count = weight.numel()
    keys = [key for seed in seeds or (0, 0, 0) for key in _keys_of(seed)]
    bits = [_DROPPED_BITS.get(tensor.dtype, 0) if seeds else 0 for tensor in (weight, exp_avg, exp_avg_sq)]
    _adam_kernel[(triton.cdiv(count, _BLOCK),)](
        weight, gradient, exp_avg, exp_avg_sq, factor, is_skipped, count,
        learning_rate, 0.0 if decoupled else weight_decay, 1.0 - learning_rate * weight_decay if decoupled else 1.0,
        beta2, 1.0 - beta1, 1.0 - beta2, 1.0 - beta1**step, (1.0 - beta2**step) ** 0.5, eps, *keys,
        weight_bits=bits[0], first_bits=bits[1], second_bits=bits[2], block=_BLOCK,
    )  # fmt: skip
