"""Random bits that are a function of a seed and a position: any device gives the same, in any order and any number of parts.

A counter is hashed twice with C. Wellons' 32-bit finaliser "lowbias32" (nullprogram.com/blog/2018/07/31), each time keyed with
one half of the seed. `optim/triton_kernels.py` computes the same numbers within its kernels.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def halves_of(seed: int) -> Tuple[int, int]:
    """The two keys, of 32 bits each."""
    return seed & _WORD, (seed >> 32) & _WORD


def hashed_bits(seed: int, begin: int, count: int, device: torch.device) -> Tensor:
    """int64 [count]: 32 random bits for each of the positions from `begin` on, below 2^32."""
    low, high = halves_of(seed)
    positions = torch.arange(begin, begin + count, dtype=torch.int64, device=device) & _WORD
    return _mixed(_mixed(positions ^ low) ^ high)


def _mixed(x: Tensor) -> Tensor:
    """Of numbers of 32 bits in int64, whose products wrap around: their lowest 32 bits are right."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & _WORD
    return x ^ (x >> 16)
