"""Stochastic rounding of float32 to 16 bits: up or down at random, so that the mean of many roundings is the value itself.

A weight of 1 in fp16 has its next neighbour 0.001 away: an update of 0.0001 would always be rounded off. Rounded stochastically
it moves the weight one time in ten, and training goes on (arXiv 1502.02551; on IPUs the hardware does so). The random bits
are a function of a key, so that a run repeats exactly.
"""

from __future__ import annotations

import math
import os
import shutil
from functools import lru_cache
from importlib.util import find_spec
from typing import Callable, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from optim.hashed_bits import hashed_bits
from seeding import derive_seed

# What 16 bits leave out of float32's 23 bits of mantissa.
_DROPPED_BITS = {torch.float16: 13, torch.bfloat16: 16}
# int32 [count], each of the numbers below 2^bits equally likely; `bits` is 16 at most. A call goes on where the last one ended.
Draw = Callable[[int, int], Tensor]
Key = Tuple[Union[int, str], ...]
_SMALLEST_NORMAL = 2.0**-14  # of fp16
_CHUNK = {
    "cpu": 2**17,
    "cuda": 2**24,
}  # elements rounded at once: on a CPU, what is needed beside them stays in the cache


class Rounding:
    """How values are written into 16 bits in one weight update: stochastically by (seed, update, name), or to the nearest."""

    def __init__(self, stochastic: bool, seed: int) -> None:
        self.stochastic = stochastic
        self.seed = seed
        self.update = 0  # number of the weight update

    def key_of(self, *name: Union[int, str]) -> Key:
        """What the random bits of `name` are drawn from in this weight update."""
        return (self.seed, "rounding", self.update, *name)

    def write(self, target: Tensor, values: Tensor, *name: Union[int, str]) -> None:
        """Copies float32 `values` into `target` of any type, rounded where it has 16 bits. `name` is what is written."""
        if self.stochastic and target.dtype in _DROPPED_BITS:
            round_stochastically(target, values, self.key_of(*name))
        else:
            target.copy_(values)


def has_kernels(device: torch.device) -> bool:
    """Whether kernels do it in one pass over memory: on NVIDIA GPUs, where Triton is installed (with torch for CUDA it is), and
    the C compiler that it calls.
    """
    return device.type == "cuda" and _has_triton()


@lru_cache(maxsize=None)
def _has_triton() -> bool:
    compilers = (os.environ.get("CC"), "gcc", "clang")  # in Triton's order
    return find_spec("triton") is not None and any(name and shutil.which(name) for name in compilers)


@torch.no_grad()
def round_stochastically(target: Tensor, values: Tensor, key: Key) -> None:
    """Writes float32 `values` into `target` (fp16 or bf16, the same shape, contiguous) with random bits drawn by `key`.

    Each value becomes one of its two neighbours, the nearer one with the larger probability; values that 16 bits can hold,
    infinities and NaNs stay what they are (of -0.0 fp16 makes 0.0). Exact to 2^-13 of the distance of the neighbours for fp16
    and 2^-16 for bf16.
    """
    if has_kernels(values.device):
        from optim.triton_kernels import round_by_kernel

        round_by_kernel(target, values.contiguous(), derive_seed(*key))
        return
    draw = _drawer(derive_seed(*key), values.device)
    chunk = _CHUNK[values.device.type]
    for into, part in zip(target.view(-1).split(chunk), values.reshape(-1).split(chunk)):
        into.copy_(_rounded(part, target.dtype, draw))


def _rounded(values: Tensor, dtype: torch.dtype, draw: Draw) -> Tensor:
    """float32 [n] whose dropped bits are 0, to be cast without further rounding."""
    dropped = _DROPPED_BITS[dtype]
    if dtype == torch.float16:
        # Below its normal range fp16 has fixed steps. Added to the smallest normal number, such values have them, too.
        shift = values.abs().lt_(_SMALLEST_NORMAL).mul_(_SMALLEST_NORMAL).copysign_(values)
        shifted = values + shift
    else:
        shift, shifted = None, values.clone()
    bits = shifted.view(torch.int32)
    # Sign and magnitude: adding below the cut and then cutting rounds the magnitude up with the right probability.
    bits.add_(draw(values.numel(), dropped)).bitwise_and_(-(1 << dropped))
    rounded = shifted if shift is None else shifted.sub_(shift)
    return rounded.masked_fill_(values.isnan(), math.nan) if _may_hold_nans(values) else rounded


def _may_hold_nans(values: Tensor) -> bool:
    """Of some NaNs (CUDA's among them) the added bits make a number. On a CPU, looking for NaNs costs half as much again as
    rounding, and a sum, which no NaN leaves finite, next to nothing; on a GPU the sum would have to be waited for.
    """
    return values.is_cuda or not math.isfinite(values.sum())


def _drawer(seed: int, device: torch.device) -> Draw:
    if device.type == "cpu":  # numpy's generator takes a fifth of the time of torch's here, and of a hash's
        return _words_drawer(seed)
    return hash_drawer(seed, device)


def _words_drawer(seed: int) -> Draw:
    source = np.random.SFC64(seed)

    def draw(count: int, bits: int) -> Tensor:
        words = torch.from_numpy(source.random_raw(count // 4 + 1).view(np.int64))  # four numbers of 16 bits from each
        return words.view(torch.int16)[:count].to(torch.int32).bitwise_and_((1 << bits) - 1)

    return draw


def hash_drawer(seed: int, device: torch.device) -> Draw:
    """What GPUs draw, with kernels or without: the same numbers on any device."""
    begin = 0

    def draw(count: int, bits: int) -> Tensor:
        nonlocal begin
        begin += count
        return hashed_bits(seed, begin - count, count, device).bitwise_and_((1 << bits) - 1).to(torch.int32)

    return draw
