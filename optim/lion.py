"""Lion (arXiv 2302.06675): the sign of an interpolated momentum, one state a weight."""

from __future__ import annotations

from typing import Any, Iterable, Tuple

import torch

from optim.eager import EagerOptimizer


class Lion(EagerOptimizer):
    """`w -= lr * (sign(beta1 * m + (1 - beta1) * g) + weight_decay * w)`, then `m = beta2 * m + (1 - beta2) * g`.

    Every weight moves by lr: a learning rate three to ten times smaller than AdamW's suits it, with as much more decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: Tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "Lion is stepped after the backward pass"
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["exp_avg"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            momenta = [self.state[weight]["exp_avg"] for weight in weights]
            beta1, beta2 = group["betas"]
            updates = torch._foreach_lerp(momenta, gradients, 1.0 - beta1)
            for update in updates:  # torch._foreach_sign_ is newer than the oldest torch that this serves
                update.sign_()
            torch._foreach_lerp_(momenta, gradients, 1.0 - beta2)
            torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
