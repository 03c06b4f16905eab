"""Adam and AdamW over weights stored in 16 bits on GPUs: a parameter's weights, states and roundings in one pass over memory.

The same optimiser as `rounded.RoundedOptimizer` around torch's, which reads and writes each of them many times.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from optim.plain import split_state
from optim.stepper import Number, Stepper
from optim.stochastic_rounding import Rounding
from seeding import derive_seed

FIRST, SECOND = "exp_avg", "exp_avg_sq"  # torch's names of states


class RoundedAdam(Stepper):
    """Steps named parameters of any float type. `settings`: of each, its lr_scale and weight_decay."""

    can_skip = True

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: Mapping[str, Mapping[str, float]],
        *,
        decoupled: bool,
        betas: Tuple[float, float],
        eps: float,
        state_types: Mapping[str, torch.dtype],
        rounding: Rounding,
    ) -> None:
        self._parameters, self._settings, self._types, self._rounding = parameters, settings, state_types, rounding
        self._shared: Dict[str, Any] = {"decoupled": decoupled, "beta1": betas[0], "beta2": betas[1], "eps": eps}
        self._states: Dict[str, Tuple[Tensor, Tensor]] = {}
        self._steps: Dict[str, int] = {}
        self._stepped: List[str] = []  # by the last update

    @torch.no_grad()
    def step(
        self, gradients: Dict[str, Tensor], factor: Number, learning_rate: float, is_skipped: Optional[Tensor] = None
    ) -> None:
        from optim.triton_kernels import adam_by_kernel  # there on GPUs alone: see `stochastic_rounding.has_kernels`

        self._stepped = [name for name in self._parameters if name in gradients]  # others' state is kept elsewhere
        for name in self._stepped:
            gradient, weight = gradients.pop(name), self._parameters[name].data
            if is_skipped is None:
                is_skipped = torch.zeros((), device=weight.device)
            if not isinstance(factor, Tensor):
                factor = torch.full((), factor, device=weight.device)
            factor = factor.float()
            self._steps[name] = self._steps.get(name, 0) + 1
            adam_by_kernel(
                weight,
                gradient.contiguous(),
                *self._states_of(name),
                factor=factor,
                is_skipped=is_skipped,
                step=self._steps[name],
                learning_rate=learning_rate * self._settings[name]["lr_scale"],
                weight_decay=self._settings[name]["weight_decay"],
                seeds=self._seeds(name),
                **self._shared,
            )

    def was_skipped(self) -> None:
        for name in self._stepped:
            self._steps[name] -= 1

    def _states_of(self, name: str) -> Tuple[Tensor, Tensor]:
        if name not in self._states:
            weight = self._parameters[name].data
            first, second = (torch.zeros_like(weight, dtype=self._types[key]) for key in (FIRST, SECOND))
            self._states[name] = first, second
        return self._states[name]

    def _seeds(self, name: str) -> Optional[Tuple[int, int, int]]:
        """As `Rounding.write` draws them for what it writes one by one."""
        if not self._rounding.stochastic:
            return None
        weight, first, second = (derive_seed(*self._rounding.key_of(key, name)) for key in ("weight", FIRST, SECOND))
        return weight, first, second

    def state(self) -> Dict[str, Tensor]:
        state: Dict[str, Tensor] = {}
        for name in self._parameters:
            if self._steps.get(name, 0):
                first, second = self._states[name]
                step = torch.tensor(float(self._steps[name]))
                state.update({f"{name}.step": step, f"{name}.{FIRST}": first, f"{name}.{SECOND}": second})
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        by_parameter = split_state(state)
        self._states, self._steps = {}, {}
        for name in [name for name in self._parameters if name in by_parameter]:
            values = by_parameter[name]
            self._steps[name] = int(values["step"])
            for own, key in zip(self._states_of(name), (FIRST, SECOND)):
                own.copy_(values[key])
