"""SGD whose gradient accumulator and velocity are one tensor (PopTorch's `use_combined_accum`): 2 bytes a weight less in fp16.

`v <- momentum * v + weight_decay * w + g`, with the gradients of the micro-batches added as they come; then `w -= lr * v`.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional

import torch
from torch import Tensor, nn

from optim.plain import split_state
from optim.stepper import Number, Stepper
from optim.stochastic_rounding import Rounding


class CombinedSGD(Stepper):
    """Folds gradients (see `accumulation.GradientCatcher`) into the velocity, and steps the weights by it.

    The velocity is kept times the loss scale, so that 16 bits hold it. `gradient_factor` is what a micro-batch's scaled
    gradient counts for. `share` is what this process adds of momentum and decay: velocities are summed over replica groups.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        weight_decay: Mapping[str, float],
        lr_scale: Mapping[str, float],
        momentum: float,
        loss_scale: float,
        gradient_factor: float,
        share: float,
        dtype: torch.dtype,
        rounding: Rounding,
        replica_group: int = 0,
    ) -> None:
        self._parameters, self._decay, self._lr_scale = parameters, weight_decay, lr_scale
        self._momentum, self._loss_scale = momentum, loss_scale
        self._gradient_factor, self._share = gradient_factor, share
        self._dtype, self._rounding, self._replica_group = dtype, rounding, replica_group
        self._velocity: Dict[str, Tensor] = {}
        self._counts: Dict[str, int] = {}

    def fold(self, name: str, gradient: Tensor) -> None:
        """Adds a micro-batch's gradient; the first of a weight update also brings momentum and decay in."""
        weight = self._parameters[name].data
        if name not in self._velocity:
            self._velocity[name] = torch.zeros_like(weight, dtype=self._dtype)
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        wide = self._velocity[name].float()
        if count == 0:
            wide = wide.mul_(self._momentum * self._share)
            wide.add_(weight, alpha=self._decay[name] * self._loss_scale * self._share)
        wide.add_(gradient, alpha=self._gradient_factor)
        if wide is not self._velocity[name]:  # it is where the velocity is float32
            self._rounding.write(self._velocity[name], wide, "velocity", self._replica_group, count, name)

    def take(self) -> Dict[str, Tensor]:
        """The velocities themselves, for reduction over replicas."""
        self._counts = {}
        return dict(self._velocity)

    def step(
        self, gradients: Dict[str, Tensor], factor: Number, learning_rate: float, is_skipped: Optional[Tensor] = None
    ) -> None:
        """One update from the velocities, which `gradients` holds. `factor` is 1 over the loss scale."""
        assert isinstance(factor, float) and is_skipped is None, "see `can_skip`"
        for name, velocity in gradients.items():
            weight = self._parameters[name].data
            wide = weight.float().sub_(velocity, alpha=learning_rate * self._lr_scale[name] * factor)
            if wide is not weight:
                self._rounding.write(weight, wide, "weight", name)

    def state(self) -> Dict[str, Tensor]:
        """The velocities without the loss scale; where one has overflowed nothing leads on, so it begins anew with 0."""
        wide = {name: value.float() / self._loss_scale for name, value in self._velocity.items()}
        return {f"{name}.momentum_buffer": torch.nan_to_num(value, 0.0, 0.0, 0.0) for name, value in wide.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, states in split_state(state).items():
            if name in self._parameters:
                value = states["momentum_buffer"].to(self._parameters[name].device).float()
                self._velocity[name] = (value * self._loss_scale).to(self._dtype)
