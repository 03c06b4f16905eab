"""The factor of the loss in the backward pass: static, or automatic as PopART does it (its "ALS").

Automatic: gradients are counted below and above an edge (an eighth of fp16's largest number). If the share above it exceeds a
threshold, the factor halves for the next weight update, else it doubles. Unlike torch's GradScaler it has no bounds and no
growth interval. Approximated is which gradients are counted: those of the weights and of the outputs of the blocks' linear layers
(without the last block's qkv) here, the fp16 outputs of every operation of the backward pass on the IPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable

import torch
from torch import Tensor, nn

FP16_MAX = 65504.0


@dataclass
class LossScale:
    """`scale` = base * factor. `factor` is state: saved with a step and restored."""

    base: float
    automatic: bool = False
    period: int = 1  # weight updates between two counts
    threshold: float = 1e-7  # share of the counted numbers that may lie at or above the edge
    bin_edge: float = 0.125  # of fp16's largest number
    cap: float = 0.0  # largest scale; 0: none, as PopART
    factor: float = 1.0

    @property
    def scale(self) -> float:
        return self.base * self.factor

    @property
    def edge(self) -> float:
        return self.bin_edge * FP16_MAX

    def restore(self, factor: float) -> None:
        """Goes on from a saved factor; a static scale is the config's."""
        if self.automatic:
            self.factor = factor

    def counts_in(self, weight_update: int) -> bool:
        """Whether gradients are counted in this weight update (from 0)."""
        return self.automatic and weight_update % self.period == 0

    def adjust(self, below: float, above: float) -> None:
        """Halves or doubles, after an update in which so many numbers lay below the edge, and at or above it."""
        share = self.threshold / (1.0 - self.threshold) if self.threshold < 1.0 else float("inf")
        limit = share * below if below else 0.0  # infinity times 0 is no number
        # The range of float32, in which PopART keeps it: beyond, no halving would lead back.
        self.factor = min(max(self.factor * (0.5 if above > limit else 2.0), 2.0**-126), 2.0**127)
        if self.cap and self.scale > self.cap:
            self.factor = self.cap / self.base


class GradientCounter:
    """Counts numbers below an edge, and at or above it (infinities and NaNs are above), while `active`."""

    def __init__(self, edge: float, device: torch.device) -> None:
        self.active = False
        self._edge = edge
        self._below = torch.zeros((), dtype=torch.float64, device=device)
        self._all = 0

    def count(self, gradient: Tensor) -> None:
        """Adds a gradient's numbers up. No synchronisation with the device."""
        if self.active:
            self._below += (gradient.abs() < self._edge).sum()
            self._all += gradient.numel()

    def take(self) -> Tensor:
        """float64 [2]: how many were below, and how many not. The next count starts at 0."""
        counts = torch.stack([self._below, self._all - self._below])
        self._below, self._all = torch.zeros_like(self._below), 0
        return counts

    def watch_outputs(self, modules: Iterable[nn.Module]) -> None:
        """Counts the 16-bit gradients of the outputs of all linear layers among the modules."""
        for module in modules:
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._watch)

    def _watch(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.active and output.requires_grad and output.dtype in (torch.float16, torch.bfloat16):
            output.register_hook(self.count)
