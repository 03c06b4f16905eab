"""How fast this CPU trains an encoder block of a config's size, measured for a second or two."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Dict, Sequence

import torch

from machine import num_cores
from models.architecture import Architecture, architecture_of, count_forward_flops
from models.stages import Stage
from models.vit import build_model
from runtime.devices import set_threads, use_native_kernels
from runtime.precision import precision_of

if TYPE_CHECKING:
    from config import Config

MOST_ROWS, MOST_FLOPS = 2048, 1e10  # of a pass: tokens, and operations forward and backward
LEAST_TURNS, LONGEST = 5, 2.0  # of each precision, unless they take so many seconds together
BLOCK = "block 0"


def measured_block_rates(config: Config, precisions: Sequence[str], seconds: float, runtime: str) -> Dict[str, float]:
    """FLOP/s of all cores together, forward and backward, in each of the `precisions`, on the kernels that a run would have.

    As if every core did what one does of a process of this `runtime`, with the threads that such a one has. The precisions take
    turns for so many `seconds` together, longer where that is few turns; what counts is the quickest of each.
    """
    set_threads(config, default=num_cores() if runtime == "single" else 1)
    arch = replace(architecture_of(config), depth=2, recompute=False)
    operations = 3 * count_forward_flops(arch, BLOCK)
    images = max(1, min(config.micro_batch_size, MOST_ROWS // arch.num_tokens, int(MOST_FLOPS / operations)))
    passes = {name: _training_pass(arch, images, config.model_copy(update={"precision": name})) for name in precisions}
    quickest: Dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):  # dropout draws from the process's generator
        for train in passes.values():
            train()  # the first is slower
        begun, turns = time.perf_counter(), 0
        while (
            (taken := time.perf_counter() - begun) < seconds or (turns < LEAST_TURNS and taken < LONGEST) or not turns
        ):
            for name, train in passes.items():
                start = time.perf_counter()
                train()
                quickest[name] = min(time.perf_counter() - start, quickest.get(name, float("inf")))
            turns += 1
    parallel = num_cores() / min(num_cores(), torch.get_num_threads())
    return {name: images * operations * parallel / taken for name, taken in quickest.items()}


def _training_pass(arch: Architecture, images: int, config: Config) -> Callable[[], None]:
    device, precision = torch.device("cpu"), precision_of(config)
    block = build_model(arch, seed=0, stage=Stage(0, (BLOCK,))).to(precision.weights)
    if config.compile != "on" and config.native_kernels != "off":  # a missing compiler is told by the run
        use_native_kernels([block], config.model_copy(update={"native_kernels": "auto"}), device)
    shape = (2, images, arch.num_tokens, arch.embed_dim)
    tokens, gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(precision.tokens)

    def train() -> None:
        with precision.forward(device):
            output = block(tokens.requires_grad_())
        (output * gradient).sum().backward()  # not with `gradient` as its argument: torch would import its compiler

    return train
