"""What measurements on a GPU share: sizes, our runtime fed from host memory, waiting for the device, its speed in products.

All of it runs on a CPU with `--device cpu --tiny` too, so that it can be tried where there is no GPU; figures are for GPUs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import torch

from batch import DataShare, HostBatch
from benchmarks.facts import cpu_name, random_batch
from config import Config, load_config
from placement import place
from runtime.single import SingleRuntime

ROOT = Path(__file__).resolve().parents[1]
Turn = Callable[[int], float]  # trains so many steps and gives the seconds that they took
TINY = {
    "image-size": 32,
    "patches-size": 8,
    "hidden-size": 32,
    "num-attention-heads": 2,
    "mlp-dim": 64,
    "num-hidden-layers": 2,
}
SIZES = {"s16": "generated_s16", "b16": "generated_b16"}


def add_device_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"), help="default: cuda")
    add("--tiny", action="store_true", help="a model of two narrow blocks at 32 px: to try the script, not to measure")
    add("--sizes", nargs="+", default=["s16", "b16"], choices=tuple(SIZES), help="models (default: both)")
    add("--json", default="", metavar="FILE", help="write the figures there too")


def check_device(options: argparse.Namespace) -> None:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no GPU here; `--device cpu --tiny` tries the script.")


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"


def our_config(options: argparse.Namespace, size: str, precision: str, batch: int, **keys: Any) -> Config:
    """One micro-batch a weight update, nothing random but the weights."""
    flags = {
        "config-file": ROOT / "configs.yaml", "config": SIZES[size], "runtime": "single", "device": options.device,
        "precision": precision, "micro-batch-size": batch, "gradient-accumulation": 1, "replication-factor": 1,
        "optimizer": "AdamW", "learning-rate": 1e-3, "drop-path-rate": 0.0, "hidden-dropout-prob": 0.0,
        "recompute-checkpoint-every-layer": "false", **(TINY if options.tiny else {}),
        **{name.replace("_", "-"): value for name, value in keys.items()},
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    depth = TINY["num-hidden-layers"] if options.tiny else 12
    return load_config("pretrain", [*words, "--layers-per-ipu", str(depth), "--ipus-per-replica", "1"])


def our_runtime(config: Config) -> SingleRuntime:
    runtime = place(config)
    return SingleRuntime(config, runtime, num_cores=torch.get_num_threads())


def host_batches(config: Config) -> Iterator[HostBatch]:
    """The same random bytes in page-locked memory again and again, as the loader hands them out."""
    batch = random_batch(config, DataShare((0,)))
    if config.device == "cuda" and batch.images is not None:
        batch = replace(batch, images=batch.images.pin_memory())
    for step in itertools.count():
        yield replace(batch, step=step)


def our_turn(runtime: SingleRuntime) -> Turn:
    """Host steps of the product's own runtime, fed as training feeds it: from bytes on the host to the updated weights."""
    batches = runtime.feed(host_batches(runtime.config))  # type: ignore[arg-type]
    updates = itertools.count()

    def turn(steps: int) -> float:
        begun = clock(runtime.device.type)
        for _ in range(steps):
            runtime.train_step(next(batches), 1e-3, next(updates))
        return clock(runtime.device.type) - begun

    return turn


def clock(device: str) -> float:
    """Seconds, after all that was launched."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def free_memory(device: str) -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def square_matmul_rate(device: str, dtype: torch.dtype, tiny: bool) -> float:
    """FLOP/s of a large square product of random numbers: the median of twenty."""
    side = 256 if tiny else 8192
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds: List[float] = []
    for _ in range(23):
        begun = clock(device)
        left @ right
        seconds.append(clock(device) - begun)
    return 2 * side**3 / statistics.median(seconds[3:])


def facts(options: argparse.Namespace) -> Dict[str, Any]:
    return {"device": device_name(options.device), "torch": torch.__version__, "tiny": options.tiny}
