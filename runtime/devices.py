"""Devices, memory, threads and compilation: what every torch runtime sets up before it builds its model."""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Iterable, List, Tuple

import torch

import machine
from errors import UserError
from models.native.build import BuildError
from models.products import multiplies

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


def wire_of(config: Config, device: torch.device) -> torch.device:
    """Where what processes send each other lies: on their device, or in host memory where they share GPUs.

    NCCL takes one process a GPU, and gloo sends nothing from GPU to GPU.
    """
    return torch.device("cpu") if device.type == "cuda" and config.share_gpus else device


def set_threads(config: Config, default: int) -> None:
    """CPU threads of this process: the config's number, or `default`, or fewer where OMP_NUM_THREADS says so."""
    wished = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(wished) if wished.isdigit() and int(wished) else default
    torch.set_num_threads(config.threads_per_process or min(default, limit))


def keep_freed_memory(device: torch.device) -> None:
    """Lets a CPU training step reuse the memory of the one before: 3 to 5 % of the CPU time of a small ViT."""
    if device.type == "cpu":
        machine.keep_freed_memory()


def yield_the_core_rarely(device: torch.device) -> None:
    """Asks Linux not to stop this CPU process in favour of one that has just woken (SCHED_BATCH, sched(7)).

    Where stages outnumber cores, a stage that a message wakes would else push another off its core in the middle of a send, and
    gloo's thread of that one spins on the lock until it is back: 2 % of the CPU time at four stages on two cores.
    """
    if device.type == "cpu" and hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def peak_memory(device: torch.device) -> Tuple[int, str]:
    """The most bytes that this process has held so far on its device, and of what."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "GPU memory in tensors"
    return machine.peak_resident_bytes(), "resident memory of the process"


def multiply_as_on_cpus(device: torch.device) -> None:
    """Lets a GPU multiply float32 as float32 (not as TF32, 10 bits), and add the products of 16-bit numbers up in float32.

    Of split sums cuBLAS may else keep the parts in 16 bits.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def compile_blocks(model: VisionTransformer, config: Config, device: torch.device) -> bool:
    """Compiles the embedding and every encoder block in place, where the config says so; tells whether it does.

    Blocks that are alike share their code; each rate of stochastic depth needs its own.
    `compile: auto` does so on GPUs only: on the CPUs measured, our own kernels were faster, and at once. And not
    with automatic loss scaling, whose hooks on gradients within the blocks would break them up.
    """
    pays = device.type == "cuda" and not config.auto_loss_scaling
    wanted = config.compile == "on" or (config.compile == "auto" and pays)
    if not wanted or not hasattr(torch.nn.Module, "compile"):  # Module.compile is there from torch 2.2 on
        return False
    if model.arch.is_random:
        import torch._inductor.config as inductor

        inductor.fallback_random = True  # dropout masks as without compilation, for the same numbers
    import torch._dynamo.config as dynamo

    # Training and evaluation, each with and without gradients: past its limit torch would leave the later blocks as they are.
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    setattr(dynamo, limit, max(getattr(dynamo, limit), 4 * len(model.blocks)))
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)  # not used on purpose
    for block in model.blocks.values():
        block.compile(dynamic=False)
    # Bytes to normalised patches in 16 bits in one pass over the images.
    model.embed = torch.compile(model.embed, dynamic=False)  # type: ignore[method-assign]
    return True


def use_native_kernels(models: Iterable[VisionTransformer], config: Config, device: torch.device) -> List[str]:
    """Lets encoder blocks run on `models.native` where they can; gives a note where a compiler is missing.

    That is for float32 weights on a CPU that multiplies the precision's numbers, and blocks that torch has not compiled. Raises
    UserError where `native_kernels: on` finds no compiler.
    """
    fits = config.precision == "32.32" or (config.precision == "bf16.32" and multiplies(torch.bfloat16, device))
    if config.native_kernels == "off" or device.type != "cpu" or not fits:
        return []
    try:
        for model in models:
            model.use_native_kernels()
    except BuildError as error:
        if config.native_kernels == "on":
            raise UserError(f"native_kernels = on, but {error}.\n       Use --native-kernels auto or off.") from error
        return [f"the blocks run on torch's kernels, which are slower: {error}"]
    return []
