"""A torch optimiser over float32 weights and gradients, as the weight update steps every kind of optimiser."""

from __future__ import annotations

from typing import Dict, Mapping, Optional

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optim.stepper import Number, Stepper


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Sets every group's rate: its `lr_scale` times the run's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


class PlainOptimizer(Stepper):
    """Steps all weights at once, in place, by torch's fused or foreach kernels."""

    def __init__(self, optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self.optimizer, self._parameters = optimizer, parameters
        self.can_skip = all(group.get("fused") for group in optimizer.param_groups)
        self._begins = False  # whether the last step was the first

    def step(
        self, gradients: Dict[str, Tensor], factor: Number, learning_rate: float, is_skipped: Optional[Tensor] = None
    ) -> None:
        if is_skipped is None:
            self._multiply(gradients, factor)
        else:
            self._tell_the_kernels(factor, is_skipped)
        for name, parameter in self._parameters.items():
            parameter.grad = gradients.pop(name, None)
        set_learning_rate(self.optimizer, learning_rate)
        self._begins = not any(self.optimizer.state.values())
        self.optimizer.step()
        for parameter in self._parameters.values():
            parameter.grad = None

    def was_skipped(self) -> None:
        # Of momentum that the first step was to begin with, torch has made the memory and nothing more.
        if self._begins:
            self.optimizer.state.clear()

    @staticmethod
    def _multiply(gradients: Dict[str, Tensor], factor: Number) -> None:
        if (isinstance(factor, Tensor) or factor != 1.0) and gradients:
            torch._foreach_mul_(list(gradients.values()), factor)

    def _tell_the_kernels(self, factor: Number, is_skipped: Tensor) -> None:
        """Hands over what the gradients are to be divided by, and whether to leave the update out, as torch's GradScaler does."""
        divisor = None
        if isinstance(factor, Tensor):
            divisor = factor.reciprocal().float()
        elif factor != 1.0:
            divisor = torch.full_like(is_skipped, 1.0 / factor)
        self.optimizer.grad_scale, self.optimizer.found_inf = divisor, is_skipped  # type: ignore[attr-defined]

    def state(self) -> Dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        by_parameter = split_state(state)
        for name, parameter in self._parameters.items():
            self.optimizer.state[parameter] = {
                key: on_its_device(self.optimizer, parameter, value, parameter.dtype if value.dim() else value.dtype)
                for key, value in by_parameter.get(name, {}).items()
            }


def split_state(state: Mapping[str, Tensor]) -> Dict[str, Dict[str, Tensor]]:
    """Parameter name -> state name -> tensor."""
    by_parameter: Dict[str, Dict[str, Tensor]] = {}
    for full_name, value in state.items():
        name, key = full_name.rsplit(".", 1)
        by_parameter.setdefault(name, {})[key] = value
    return by_parameter


def on_its_device(optimizer: Optimizer, parameter: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a state tensor where the optimiser wants it.

    Step counters stay on the CPU, except under torch's fused optimisers, which want them beside the weights.
    """
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    return value.to(parameter.device if is_fused or value.dim() else "cpu", dtype, copy=True)
