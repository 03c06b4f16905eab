"""Stochastic rounding of float32 to 16 bits: up or down at random, so that the mean of many roundings is the value itself.

A weight of 1 in fp16 has its next neighbour 0.001 away: an update of 0.0001 would always be rounded off. Rounded stochastically
it moves the weight one time in ten, and training goes on (arXiv 1502.02551; on IPUs the hardware does so). The random bits
are a function of a key, so that a run repeats exactly.
"""

from __future__ import annotations

import math
from typing import Tuple, Union

import torch
from torch import Tensor

from seeding import derive_seed

# What 16 bits leave out of float32's 23 bits of mantissa.
_DROPPED_BITS = {torch.float16: 13, torch.bfloat16: 16}
_SMALLEST_NORMAL = 2.0**-14  # of fp16
_CHUNK = 2**17  # elements rounded at once: what is needed beside them stays in the cache


class Rounding:
    """How values are written into 16 bits in one weight update: stochastically by (seed, update, name), or to the nearest."""

    def __init__(self, stochastic: bool, seed: int) -> None:
        self.stochastic = stochastic
        self.seed = seed
        self.update = 0  # number of the weight update

    def write(self, target: Tensor, values: Tensor, *name: Union[int, str]) -> None:
        """Copies float32 `values` into `target` of any type, rounded where it has 16 bits. `name` is what is written."""
        if self.stochastic and target.dtype in _DROPPED_BITS:
            round_stochastically(target, values, (self.seed, "rounding", self.update, *name))
        else:
            target.copy_(values)


@torch.no_grad()
def round_stochastically(target: Tensor, values: Tensor, key: Tuple[Union[int, str], ...]) -> None:
    """Writes float32 `values` into `target` (fp16 or bf16, the same shape, contiguous) with random bits drawn by `key`.

    Each value becomes one of its two neighbours, the nearer one with the larger probability; values that 16 bits can hold,
    infinities and NaNs stay what they are (of -0.0 fp16 makes 0.0). Exact to 2^-13 of the distance of the neighbours for fp16
    and 2^-16 for bf16.
    """
    generator = torch.Generator(device=values.device).manual_seed(derive_seed(*key))
    for into, part in zip(target.view(-1).split(_CHUNK), values.reshape(-1).split(_CHUNK)):
        into.copy_(_rounded(part, target.dtype, generator))


def _rounded(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
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
    bits.add_(_random_bits(values.numel(), dropped, generator)).bitwise_and_(-(1 << dropped))
    rounded = shifted if shift is None else shifted.sub_(shift)
    # Of some NaNs (CUDA's among them) the added bits make a number.
    return rounded.masked_fill_(values.isnan(), math.nan)


def _random_bits(count: int, bits: int, generator: torch.Generator) -> Tensor:
    """int32 [count], each of the numbers below 2^bits equally likely; `bits` is 16 at most."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)  # 64 bits at a time: a third of the time of one draw an element
    return words.view(torch.int16)[:count].to(torch.int32).bitwise_and_((1 << bits) - 1)
