"""How fast this CPU is at a config's products and blocks, measured for about a second or less."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Dict

import torch

from machine import num_cores
from models.architecture import architecture_of, count_forward_flops
from models.products import autocast, linear
from models.stages import Stage
from models.vit import build_model
from runtime.devices import set_threads, use_native_kernels
from runtime.precision import TYPES

if TYPE_CHECKING:
    from config import Config

SECONDS = 1.0
MOST_ROWS = 4096
SECONDS_OF_CHOICE, ROWS_OF_CHOICE = 0.3, 2048
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
    """FLOP/s of an encoder block, forward and backward, in fp32 and in bf16 with float32 weights, on the kernels of the run.

    In turns, the quickest round of each.
    """
    arch = replace(
        architecture_of(config), depth=2, dropout=0.0, attention_dropout=0.0, drop_path_rate=0.0, recompute=False
    )
    block = build_model(arch, seed=0, stage=Stage(0, ("block 0",)))
    use_native_kernels([block], config.model_copy(update={"precision": "32.32"}), torch.device("cpu"))
    images = max(1, min(ROWS_OF_CHOICE // arch.num_tokens, config.micro_batch_size))
    generator = torch.Generator().manual_seed(0)
    tokens, gradient = torch.randn(2, images, arch.num_tokens, arch.embed_dim, generator=generator)
    quickest: Dict[str, float] = {}
    begun = time.perf_counter()
    while not quickest or time.perf_counter() - begun < SECONDS_OF_CHOICE:
        for kind, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
            start = time.perf_counter()
            with autocast(tokens.device, dtype):
                output = block(tokens.requires_grad_())
            (output * gradient).sum().backward()  # not with `gradient` as its argument: torch would import its compiler
            taken = time.perf_counter() - start
            quickest[kind] = min(taken, quickest.get(kind, taken))
    operations = 3 * images * count_forward_flops(arch, "block 0")
    return {kind: operations / seconds for kind, seconds in quickest.items()}
