"""Automatic loss scaling as PopART does it: halve when too many gradients are large, else double; never skip.

PopART's method 0 tracks most tensors of the backward pass. Here: the fp16 gradients of weights, and those of the
outputs of matrix multiplications and convolutions.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch

from poptorch import _instances
from poptorch._api import API
from poptorch._arithmetic import is_multiplication
from poptorch._capture import Program
from poptorch._errors import Error

_PREFIX = "automaticLossScalingSettings."
_NONE_FOUND = "[AutomaticLossScale transform] No tracked gradient tensors of type fp16 were found."


def is_on(options: Any) -> bool:
    return bool(options._Popart.options.get(f"{_PREFIX}enabled", False))


class LossScaling:
    """Counts gradients in two bins, and moves the factor of the loss scale after every update period."""

    def __init__(self, options: Any, program: Program, weights: Dict[str, torch.Tensor]) -> None:
        facts = API["als"]["defaults"]
        given = {name: options._Popart.options.get(_PREFIX + name, default) for name, default in facts.items()}
        self._edge = given["binEdgeLocation"] * API["als"]["fp16_max_used"]
        share = given["thresholdUpperCountProportion"]
        self._most_upper_per_lower = share / (1.0 - share) if share < 1.0 else float("inf")
        self._period = given["updatePeriod"]
        self._options = options
        self._factors = (facts["factor_down"], facts["factor_up"])
        self._counts = torch.zeros(2)  # lower, upper
        self.slots = tracked_slots(program)
        if given["gradientTensorTrackingMethod"] == 2:
            raise Error("GradientsOfUserSpecifiedTensors needs a list of tensors, which PopTorch cannot set")
        if not self.slots and not any(weight.dtype == torch.float16 for weight in weights.values()):
            raise Error(_NONE_FOUND)

    def count(self, optimizer: Any, grads: List[Optional[torch.Tensor]]) -> None:
        """Gradients of one micro-batch, still scaled."""
        if optimizer.num_scaled_updates % self._period:
            return
        for grad in grads:
            if grad is not None and grad.dtype == torch.float16:
                lower = int((grad.float().abs() < self._edge).sum())  # neither inf nor NaN is below
                self._counts += torch.tensor([lower, grad.numel() - lower])

    def update(self, optimizer: Any) -> None:
        if optimizer.num_scaled_updates % self._period == 0:
            _instances.add_up(self._options, [self._counts])
            lower, upper = self._counts.tolist()
            down, up = self._factors
            optimizer.multiply_factor(down if upper > self._most_upper_per_lower * lower else up)
            self._counts.zero_()
        optimizer.count_scaled_update()


def tracked_slots(program: Program) -> List[int]:
    outputs = [slot for op in program.ops if is_multiplication(op.name) and op.with_grad for slot in op.outputs]
    return [slot for slot in outputs if program.dtypes[slot] == torch.float16]
