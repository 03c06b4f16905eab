"""Exponential moving average of the weights (Polyak and Juditsky 1992), in float32 whatever the weights are stored in."""

from __future__ import annotations

import contextlib
from typing import Dict, Iterator, Mapping, Optional

import torch
from torch import Tensor, nn


class WeightAverage:
    """`average <- d * average + (1 - d) * weight` after every weight update, from the initial weights on.

    d rises to `decay` as (1 + t) / (10 + t) with the number t of updates (as TensorFlow's ExponentialMovingAverage), so that a
    short run's average is not that of its first steps.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self._averages: Dict[str, Tensor] = {}
        self.restart()

    @property
    def values(self) -> Dict[str, Tensor]:
        """Of all parameters: weights that are not trained are their own average, and need no second copy."""
        return {name: self._averages.get(name, value.detach()) for name, value in self._parameters.items()}

    @torch.no_grad()
    def restart(self) -> None:
        """Begins with the weights as they are."""
        trained = {name: value for name, value in self._parameters.items() if value.requires_grad}
        self._averages = {name: value.detach().float().clone() for name, value in trained.items()}

    @torch.no_grad()
    def update(self, weight_update: int, is_skipped: Optional[Tensor] = None) -> None:
        """Takes the weights in, after weight update number `weight_update` (from 0).

        Not where `is_skipped`, a float on the device, is there and 1.
        """
        decay = min(self._decay, (1 + weight_update) / (10 + weight_update))
        share = 1.0 - decay if is_skipped is None else (1.0 - decay) * (1.0 - is_skipped)
        for name, average in self._averages.items():  # one by one: 16-bit weights are widened for it
            average.lerp_(self._parameters[name].detach().float(), share)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Goes on from those averages that `values` names."""
        for name, average in self._averages.items():
            if name in values:
                average.copy_(values[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average in the weights' place, for evaluation."""
        with torch.no_grad():
            own = {name: self._parameters[name].detach().clone() for name in self._averages}
            for name, average in self._averages.items():
                self._parameters[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    self._parameters[name].copy_(value)
