"""One weight update, the same in every runtime: loss scale, reduction, clipping, the non-finite policy and the optimiser."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Callable, Dict, List

import torch
from torch import Tensor, nn

from optimization import build_optimizer, load_optimizer_state, optimizer_state

if TYPE_CHECKING:
    from config import Config


def backward_seed(config: Config) -> float:
    """What a micro-batch's mean loss is multiplied by before the backward pass.

    The loss scale, and for reduction `mean` one over the number of micro-batches of a weight update (all replicas), so that
    the accumulated gradient is the mean; `sum` leaves it a sum (PopTorch's rule, independent of the loss's own mean).
    """
    micro_batches = config.gradient_accumulation * config.replication_factor
    return config.loss_scaling / (micro_batches if config.reduction_type == "mean" else 1)


class WeightUpdate:
    """Turns the accumulated gradients of some named parameters into one optimiser step.

    `sum_over_stages` adds a squared norm up over the processes that hold the other stages of the same replica.
    """

    def __init__(
        self, config: Config, parameters: Dict[str, nn.Parameter], sum_over_stages: Callable[[Tensor], Tensor]
    ) -> None:
        self.config = config
        self.parameters = parameters
        self.optimizer = build_optimizer(config, parameters) if config.learning_rate else None
        self._sum_over_stages = sum_over_stages
        self.skipped = 0
        self.grad_norm = 0.0

    def apply(self, learning_rate: float) -> None:
        """One update from the gradients, which are cleared. Sets `grad_norm`; counts in `skipped` what policy skip leaves out."""
        assert self.optimizer is not None, "a runtime built without a learning rate cannot train"
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if self.config.loss_scaling != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.config.loss_scaling)
        self.grad_norm = self._norm(gradients)
        if math.isfinite(self.grad_norm):
            self._clip(gradients)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        else:
            # Never written into the weights: the run stops with the last good ones, or goes on from them.
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def must_stop(self) -> bool:
        """Whether the run must not make another update: one was not finite, and the policy is stop."""
        return self.skipped > 0 and self.config.on_nonfinite == "stop"

    def _norm(self, gradients: List[Tensor]) -> float:
        """Global L2 norm of the reduced, unscaled gradient. Synchronises with the device."""
        norms = torch._foreach_norm(gradients) if gradients else [torch.zeros(())]
        return math.sqrt(float(self._sum_over_stages(torch.stack(norms).double().square().sum())))

    def _clip(self, gradients: List[Tensor]) -> None:
        """PopTorch's rule: factor max_norm / max(max_norm, norm)."""
        limit = self.config.max_grad_norm
        if limit > 0 and self.grad_norm > limit:
            torch._foreach_mul_(gradients, limit / self.grad_norm)

    def state(self) -> Dict[str, Tensor]:
        return optimizer_state(self.optimizer, self.parameters) if self.optimizer is not None else {}

    def load_state(self, state: Dict[str, Tensor]) -> None:
        assert self.optimizer is not None
        load_optimizer_state(self.optimizer, self.parameters, state)
