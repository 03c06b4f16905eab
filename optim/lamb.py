"""LAMB (arXiv 1904.00962): Adam's direction, scaled layer by layer to the size of the weights."""

from __future__ import annotations

from typing import Any, Iterable, Tuple

import torch
from torch import Tensor

from optim.eager import EagerOptimizer


class LAMB(EagerOptimizer):
    """`w -= lr * trust * (m_hat / (sqrt(v_hat) + eps) + weight_decay * w)`, trust = min(|w|, max_weight_norm) / |update|.

    The trust ratio is 1 where either norm is 0, as in PopTorch; so max_weight_norm 0 switches it off for a group.
    Groups take `max_weight_norm` beside `lr`, `betas`, `eps`, `weight_decay` and `bias_correction`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        max_weight_norm: float = 65535.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "max_weight_norm": max_weight_norm,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "LAMB is stepped after the backward pass"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group)

    def _step_parameter(self, parameter: Tensor, group: Any) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(parameter.grad, 1.0 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1.0 - beta2)
        steps = float(state["step"])  # kept on the CPU: no synchronisation
        correction1 = 1.0 - beta1**steps if group["bias_correction"] else 1.0
        correction2 = 1.0 - beta2**steps if group["bias_correction"] else 1.0
        denominator = (state["exp_avg_sq"] / correction2).sqrt_().add_(group["eps"])
        update = (state["exp_avg"] / correction1).div_(denominator).add_(parameter, alpha=group["weight_decay"])
        weight_norm = parameter.norm().clamp(max=group["max_weight_norm"])
        update_norm = update.norm()
        usable = (weight_norm > 0) & (update_norm > 0)
        trust = torch.where(usable, weight_norm / update_norm, torch.ones_like(weight_norm))
        parameter.add_(update * trust, alpha=-group["lr"])
