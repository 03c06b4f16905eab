"""How fast this CPU multiplies matrices of a config's size, measured for about a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Dict

import torch

from machine import num_cores
from models.architecture import architecture_of
from models.products import linear
from runtime.devices import set_threads
from runtime.precision import TYPES

if TYPE_CHECKING:
    from config import Config

SECONDS = 1.0
MOST_ROWS = 4096
KINDS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@torch.no_grad()
def measured_matmul_rate(config: Config) -> Dict[str, float]:
    """FLOP/s with all threads that a run would have, by kind of number: one product of the MLP, over and over."""
    set_threads(config, default=num_cores())
    arch, dtype = architecture_of(config), TYPES[config.precision.split(".")[0]]
    rows = min(MOST_ROWS, config.micro_batch_size * arch.num_tokens)
    x = torch.randn(rows, arch.embed_dim).to(dtype)
    weight, bias = torch.randn(arch.mlp_dim, arch.embed_dim).to(dtype), torch.zeros(arch.mlp_dim).to(dtype)
    linear(x, weight, bias)
    begun, rounds = time.perf_counter(), 0
    while (taken := time.perf_counter() - begun) < SECONDS:
        linear(x, weight, bias)
        rounds += 1
    return {KINDS[dtype]: rounds * 2 * rows * arch.embed_dim * arch.mlp_dim / taken}
