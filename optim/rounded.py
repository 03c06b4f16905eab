"""A float32 optimiser over weights and states that are stored in 16 bits.

Weights are widened to float32 some at a time, stepped there with their states by the optimiser that serves float32 weights,
and written back rounded. So every optimiser has one formulation, and no float32 copy of the weights is ever kept.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterator, List, Mapping, Optional

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optim.plain import on_its_device, set_learning_rate, split_state
from optim.stepper import Number, Stepper
from optim.stochastic_rounding import Rounding

BUCKET = 2**20  # weights that are widened at once
FIRST_ORDER, SECOND_ORDER = ("momentum_buffer", "exp_avg"), ("exp_avg_sq",)  # torch's names of states


class RoundedOptimizer(Stepper):
    """Steps `parameters` (of any float type) by the optimiser that `build` makes for float32 stand-ins of them."""

    def __init__(
        self,
        build: Callable[[Mapping[str, nn.Parameter]], Optimizer],
        parameters: Mapping[str, nn.Parameter],
        state_types: Mapping[str, torch.dtype],
        rounding: Rounding,
    ) -> None:
        self._parameters, self._types, self._rounding = parameters, state_types, rounding
        self._stand_ins = {name: nn.Parameter(_nothing_like(value)) for name, value in parameters.items()}
        self.optimizer = build(self._stand_ins)
        self._stored: Dict[str, Dict[str, Tensor]] = {name: {} for name in parameters}  # the states of 16 bits
        self._buckets = list(in_groups(parameters, BUCKET))

    @torch.no_grad()
    def step(
        self, gradients: Dict[str, Tensor], factor: Number, learning_rate: float, is_skipped: Optional[Tensor] = None
    ) -> None:
        assert isinstance(factor, float) and is_skipped is None, "see `can_skip`"
        set_learning_rate(self.optimizer, learning_rate)
        for names in self._buckets:
            for name in names:
                self._widen(name, gradients.pop(name), factor)
            self.optimizer.step()
            for name in names:
                self._narrow(name)

    def _widen(self, name: str, gradient: Tensor, factor: float) -> None:
        stand_in = self._stand_ins[name]
        stand_in.data = self._parameters[name].data.float()  # the weight itself, where it is float32
        stand_in.grad = gradient.float().mul_(factor)
        for key, value in self._stored[name].items():
            self.optimizer.state[stand_in][key] = value.float()

    def _narrow(self, name: str) -> None:
        stand_in, weight = self._stand_ins[name], self._parameters[name].data
        if weight.dtype != torch.float32:
            self._rounding.write(weight, stand_in.data, "weight", name)
        states, stored = self.optimizer.state[stand_in], self._stored[name]
        for key in [key for key in states if self._types.get(key, torch.float32) != torch.float32]:
            if key not in stored:
                stored[key] = torch.empty_like(weight, dtype=self._types[key])
            self._rounding.write(stored[key], states.pop(key), key, name)
        stand_in.data, stand_in.grad = _nothing_like(weight), None

    def state(self) -> Dict[str, Tensor]:
        """`<parameter name>.<state name>` -> tensor; empty before the first update."""
        return {
            f"{name}.{key}": value
            for name, stand_in in self._stand_ins.items()
            for key, value in {**self.optimizer.state.get(stand_in, {}), **self._stored[name]}.items()
            if isinstance(value, Tensor)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back a state, for those of its parameters that are here; its tensors may be of other types."""
        by_parameter = split_state(state)
        for name, stand_in in self._stand_ins.items():
            self.optimizer.state[stand_in], self._stored[name] = {}, {}
            for key, value in by_parameter.get(name, {}).items():
                dtype = self._types.get(key, torch.float32)
                kept = self.optimizer.state[stand_in] if dtype == torch.float32 else self._stored[name]
                kept[key] = on_its_device(self.optimizer, self._parameters[name], value, dtype)


def _nothing_like(parameter: Tensor) -> Tensor:
    """A float32 tensor of the parameter's shape and device that takes no memory."""
    return torch.zeros((), device=parameter.device).expand(parameter.shape)


def in_groups(tensors: Mapping[str, Tensor], size: int) -> Iterator[List[str]]:
    """The names, in order, in groups of up to `size` numbers or of one tensor."""
    names: List[str] = []
    room = size
    for name, tensor in tensors.items():
        if names and tensor.numel() > room:
            yield names
            names, room = [], size
        names.append(name)
        room -= tensor.numel()
    if names:
        yield names
