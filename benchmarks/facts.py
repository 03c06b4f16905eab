"""What every measurement needs beside its own figures: the machine's name and speed, synthetic batches, medians, JSON."""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from batch import DataShare, HostBatch

Shape = Tuple[int, int, int]  # rows, inner, columns of a matrix product


def cpu_name() -> str:
    """The processor's name as the operating system gives it, with the widest vector instructions that torch uses."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or an architecture without the line
    if not hasattr(torch.backends, "cpu"):  # there from torch 2.1 on
        return name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def matmul_shapes(tokens: int, width: int, mlp_dim: int) -> List[Shape]:
    """The weight products of one encoder block: qkv, projection and the two of the MLP."""
    return [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, mlp_dim), (tokens, mlp_dim, width)]


class MatmulTurn:
    """Floating-point operations a second in the products that linear layers train with, with this process's threads.

    For each shape the output, the input's gradient and the weight's, laid out as in training. Called in turn with what is
    compared with it: each call is the better of two passes. Rows are as many as a pass of half a second has, at most.
    """

    SECONDS, PROBE_ROWS = 0.5, 64

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype) -> None:
        self._dtype = dtype
        probe = [(min(rows, self.PROBE_ROWS), inner, columns) for rows, inner, columns in shapes]
        self._operands = self._made(probe)
        self._pass()
        affordable = int(self.PROBE_ROWS * self.SECONDS / self._pass())
        self.shapes = [(min(rows, max(self.PROBE_ROWS, affordable)), *rest) for rows, *rest in shapes]
        self._operands = self._made(self.shapes)
        self._pass()

    def __call__(self) -> float:
        operations = 3 * sum(2 * rows * inner * columns for rows, inner, columns in self.shapes)
        return operations / min(self._pass(), self._pass())

    def _made(self, shapes: Sequence[Shape]) -> List[Tuple[Tensor, Tensor, Tensor]]:
        sizes = [((rows, inner), (columns, inner), (rows, columns)) for rows, inner, columns in shapes]
        return [tuple(torch.randn(size).to(self._dtype) for size in each) for each in sizes]  # type: ignore[misc]

    def _pass(self) -> float:
        start = time.perf_counter()
        for x, weight, gradient in self._operands:
            x @ weight.t()
            gradient @ weight
            gradient.t() @ x
        return time.perf_counter() - start


def available_bytes() -> int:
    """Memory that programs can still take, as the system estimates it; 0 where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    except (OSError, StopIteration):
        return 0


def random_batch(config: Any, share: DataShare) -> HostBatch:
    """A host step's random uint8 images and labels, as far as a process needs them."""
    size = config.samples_per_step
    shape = (size, config.num_channels, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8) if share.images else None
    return HostBatch(0, 0, images, torch.randint(0, config.num_labels, (size,)) if share.targets else None)


def spread(values: Sequence[float]) -> Dict[str, float]:
    """Median, smallest and largest value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(values: Sequence[float], form: Callable[[float], str]) -> List[str]:
    """`spread` as three cells of a table."""
    return [form(value) for value in spread(values).values()]


def write_json(path: str, figures: Dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(figures, indent=2) + "\n")
