"""How fast this CPU multiplies matrices of a config's size, measured for about a second or less."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Callable, Dict, Iterator, Optional, Tuple

import torch

from machine import num_cores
from models.architecture import architecture_of
from models.products import autocast, linear
from runtime.devices import set_threads
from runtime.precision import TYPES

if TYPE_CHECKING:
    from config import Config
    from models.architecture import Architecture

SECONDS = 1.0
MOST_ROWS = 4096
SECONDS_OF_CHOICE, ROWS_OF_CHOICE = 0.3, 512
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


def measured_training_rates(config: Config) -> Dict[str, float]:
    """FLOP/s of an encoder block's products in fp32 and in bf16 with float32 weights, forward and backward, as training runs
    them: casts of weights and gradients count. In turns, the quickest round of each.
    """
    arch = architecture_of(config)
    rows = min(ROWS_OF_CHOICE, config.micro_batch_size * arch.num_tokens)
    layers = [_layer(rows, inner, outer) for inner, outer in _sizes(arch)]
    quickest: Dict[str, float] = {}
    begun = time.perf_counter()
    while not quickest or time.perf_counter() - begun < SECONDS_OF_CHOICE:
        for kind, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
            start = time.perf_counter()
            for layer in layers:
                layer(dtype)
            taken = time.perf_counter() - start
            quickest[kind] = min(taken, quickest.get(kind, taken))
    operations = 3 * sum(2 * rows * inner * outer for inner, outer in _sizes(arch))
    return {kind: operations / seconds for kind, seconds in quickest.items()}


def _sizes(arch: Architecture) -> Iterator[Tuple[int, int]]:
    """Inputs and outputs of a block's linear layers."""
    width = arch.embed_dim
    yield from ((width, 3 * width), (width, width), (width, arch.mlp_dim), (arch.mlp_dim, width))


def _layer(rows: int, inner: int, outer: int) -> Callable[[Optional[torch.dtype]], None]:
    x, weight = torch.randn(rows, inner, requires_grad=True), torch.randn(outer, inner, requires_grad=True)
    bias, gradient = torch.zeros(outer, requires_grad=True), torch.randn(rows, outer)

    def forward_backward(dtype: Optional[torch.dtype]) -> None:
        with autocast(x.device, dtype):
            output = linear(x, weight, bias)
        torch.autograd.grad(output, (x, weight, bias), gradient.to(output.dtype))

    return forward_backward
