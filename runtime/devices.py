"""Devices, threads and compilation: what every torch runtime sets up before it builds its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from config import Config
    from models.vit import VisionTransformer


def pick_device(config: Config, local_rank: int = 0) -> torch.device:
    """The device of one process: `cuda:<local rank>`, wrapping around where there are fewer GPUs, or the CPU."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def set_threads(config: Config, default: int) -> None:
    """CPU threads of this process: the config's number, or `default`."""
    torch.set_num_threads(config.threads_per_process or default)


def compile_blocks(model: VisionTransformer, config: Config, device: torch.device) -> None:
    """Compiles every encoder block in place; blocks of one shape share their code, so the price is that of one.

    `compile: auto` does so on GPUs only: on the CPUs measured, compiled blocks were no faster than the library's kernels.
    """
    wanted = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    if not wanted or not hasattr(torch.nn.Module, "compile"):  # Module.compile is there from torch 2.2 on
        return
    if model.arch.is_random:
        import torch._inductor.config as inductor

        inductor.fallback_random = True  # dropout masks as without compilation, for the same numbers
    for block in model.blocks.values():
        block.compile(dynamic=False)
