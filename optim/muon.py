"""Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum, made orthogonal, for the matrices of the blocks.

The update's size is AdamW's, 0.2 * sqrt(larger side) (arXiv 2502.16982, section 2.2), so that AdamW's learning rates and decay
serve; all other weights are stepped by AdamW itself.
"""

from __future__ import annotations

from typing import Any, Iterable, List, Tuple

import torch
from torch import Tensor

from optim.eager import EagerOptimizer

# Coefficients of the quintic Newton-Schulz iteration, chosen by the authors for speed rather than convergence to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_RMS = 0.2  # root mean square of an AdamW update, as measured in the second paper


def orthogonalized(matrices: Tensor) -> Tensor:
    """[P, rows, columns] -> the same with all singular values near 1 (0.7 to 1.2), in float32 (bfloat16 on GPUs)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


class Muon(EagerOptimizer):
    """`v = momentum * v + g`, `w -= lr * (0.2 * sqrt(max(side)) * orthogonalized(g + momentum * v) + weight_decay * w)`.

    For groups with `num_matrices` P > 0, whose weights are P matrices one above the other (3 for query, key and value); groups
    with P = 0 are stepped by AdamW with `betas` and `eps`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.95,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "num_matrices": 0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon is stepped after the backward pass"
        for group in self.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if weights:
                torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
            if group["num_matrices"]:
                for weight in weights:
                    assert weight.grad is not None
                    self._step_matrices(weight, weight.grad, group)
            elif weights:
                self._step_others(weights, [weight.grad for weight in weights if weight.grad is not None], group)

    def _step_matrices(self, weight: Tensor, gradient: Tensor, group: Any) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        update = torch.add(gradient, momentum, alpha=group["momentum"])
        matrices = update.view(group["num_matrices"], -1, weight.shape[1])
        size = _RMS * max(matrices.shape[1:]) ** 0.5
        weight.add_(orthogonalized(matrices).view_as(weight), alpha=-group["lr"] * size)

    def _step_others(self, weights: List[Tensor], gradients: List[Tensor], group: Any) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["step"] = torch.zeros((), dtype=torch.float32)
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
                self.state[weight]["exp_avg_sq"] = torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        beta1, beta2 = group["betas"]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(means, gradients, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        for weight, state, mean, square in zip(weights, states, means, squares):
            state["step"] += 1
            steps = float(state["step"])  # kept on the CPU: no synchronisation
            deviation = (square / (1.0 - beta2**steps)).sqrt_().add_(group["eps"])
            weight.addcdiv_(mean, deviation, value=-group["lr"] / (1.0 - beta1**steps))
