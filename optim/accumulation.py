"""The gradients of the micro-batches of a weight update, added up.

In float32 autograd does so by itself. Otherwise each parameter's gradient is folded into a total of another type and freed as
soon as autograd has it, so that there is never a second set. A 16-bit mean is kept as a running one,
`s <- s * k / (k + 1) + g / (k + 1)`, as PopTorch does for half-precision accumulators: it stays in the range of one gradient,
where a sum would leave it.
"""

from __future__ import annotations

from typing import Callable, Dict, Mapping

import torch
from torch import Tensor, nn

from optim.stochastic_rounding import Rounding

Fold = Callable[[str, Tensor], None]


class AutogradAccumulator:
    """float32 sums in the parameters' own `.grad`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def take(self) -> Dict[str, Tensor]:
        """The totals by parameter name; the next weight update starts without."""
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        for parameter in self._parameters.values():
            parameter.grad = None
        return gradients


class GradientAccumulator:
    """The sum or the running mean of each parameter's gradients, in `dtype`; each replica group draws its own roundings."""

    def __init__(self, dtype: torch.dtype, running_mean: bool, rounding: Rounding, replica_group: int = 0) -> None:
        self._dtype, self._running_mean, self._rounding = dtype, running_mean, rounding
        self._replica_group = replica_group
        self._totals: Dict[str, Tensor] = {}
        self._counts: Dict[str, int] = {}

    def fold(self, name: str, gradient: Tensor) -> None:
        """Adds a micro-batch's gradient, which is not to be used afterwards."""
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        if count == 0 and gradient.dtype == self._dtype:
            self._totals[name] = gradient
        elif count == 0:
            self._totals[name] = torch.empty_like(gradient, dtype=self._dtype)
            self._write(name, gradient, count)
        elif self._running_mean:
            mean = self._totals[name].float() * (count / (count + 1))
            mean.add_(gradient, alpha=1 / (count + 1))
            self._write(name, mean, count)
        elif self._dtype == torch.float32:
            self._totals[name].add_(gradient)
        else:
            self._write(name, self._totals[name].float().add_(gradient), count)

    def _write(self, name: str, values: Tensor, count: int) -> None:
        self._rounding.write(self._totals[name], values, "accumulator", self._replica_group, count, name)

    def take(self) -> Dict[str, Tensor]:
        """The totals by parameter name; the next weight update starts without."""
        totals, self._totals, self._counts = self._totals, {}, {}
        return totals


class GradientCatcher:
    """Takes every parameter's gradient from autograd, once a micro-batch, and hands it to `fold`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], fold: Fold) -> None:
        self._parameters, self._fold = parameters, fold
        for name, parameter in parameters.items():
            if hasattr(parameter, "register_post_accumulate_grad_hook"):  # torch 2.1 and later
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._catch(name))

    def collect(self) -> None:
        """Catches what no hook has, after a micro-batch's backward pass."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._catch(name)

    @torch.no_grad()
    def _catch(self, name: str) -> None:
        parameter = self._parameters[name]
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        self._fold(name, gradient)
