"""Attention and the MLP of an encoder block as autograd functions on the kernels: what torch's layers compute, to rounding.

Beside the kernels' own speed they save passes over memory: biases are added, and their gradients summed, where their numbers
pass by anyway, and the MLP keeps one activation of its width between forward and backward, not two.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.native.kernels import attention_backward, attention_forward, gelu_backward_, gelu_forward

Gradients = Tuple[Optional[Tensor], ...]


class ProjectedAttention(torch.autograd.Function):
    """x [B, N, D], weight [3 * D, D], bias [3 * D], number of heads -> the heads' outputs [B, N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_heads: int) -> Tensor:  # type: ignore[override]
        qkv = (x.flatten(0, 1) @ weight.t()).view(*x.shape[:2], len(weight))
        out, log_sums = attention_forward(qkv, bias, num_heads)
        ctx.save_for_backward(x, weight, bias, qkv, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        x, weight, bias, qkv, out, log_sums = ctx.saved_tensors
        of_qkv, of_bias = attention_backward(gradient.contiguous(), qkv, bias, out, log_sums)
        rows = of_qkv.flatten(0, 1)
        of_x = (rows @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        of_weight = rows.t() @ x.flatten(0, 1) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, of_bias if ctx.needs_input_grad[2] else None, None


class GeluMlp(torch.autograd.Function):
    """x [..., D], first weight [M, D] and bias [M], second weight [D, M] and bias [D] -> [..., D]."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        hidden = x.flatten(0, -2) @ weight1.t()
        ctx.save_for_backward(x, hidden, weight1, bias1, weight2)
        return torch.addmm(bias2, gelu_forward(hidden, bias1), weight2.t()).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        x, hidden, weight1, bias1, weight2 = ctx.saved_tensors
        needs = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        of_hidden, of_bias1, active = gelu_backward_(rows @ weight2, hidden, bias1)
        of_weight2 = rows.t() @ active if needs[3] else None
        of_bias2 = rows.sum(0) if needs[4] else None
        of_weight1 = of_hidden.t() @ x.flatten(0, -2) if needs[1] else None
        of_x = (of_hidden @ weight1).view_as(x) if needs[0] else None
        return of_x, of_weight1, of_bias1 if needs[2] else None, of_weight2, of_bias2
