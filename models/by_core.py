"""Forward passes without gradients on CPUs: a thread a core, each of which computes some of the images alone.

Where threads share every product, all wait for the last of them a hundred times a pass: for long, where another process has taken
its core for a moment. Threads with images of their own wait once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Callable, ContextManager

import torch
from torch import Tensor

from models.architecture import count_forward_flops
from models.vit import VisionTransformer

MOST_ROWS = 16  # images a thread computes together: more find no faster products, and less cache
LEAST_FLOPS = 2e8  # of a thread's turn, below which what Python does for it, one thread at a time, would count


def predict_by_core(
    model: VisionTransformer, images: Tensor, context: Callable[[], ContextManager[None]] = nullcontext
) -> Tensor:
    """`model(images)` without gradients, [B, C, H, W] to [B, K], each thread's part within a `context()` of its own."""

    @torch.no_grad()
    def computed(part: Tensor) -> Tensor:
        with context():
            return model(part)

    threads = torch.get_num_threads()
    rows = max(1, min(MOST_ROWS, -(-len(images) // threads)))
    if images.device.type != "cpu" or min(threads, len(images)) == 1 or rows * _flops(model) < LEAST_FLOPS:
        return computed(images)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(computed, images.split(rows))))
    finally:
        torch.set_num_threads(threads)  # what threads that are started later have


def _flops(model: VisionTransformer) -> int:
    """Of one image."""
    return sum(count_forward_flops(model.arch, unit) for unit in model.stage.units)
