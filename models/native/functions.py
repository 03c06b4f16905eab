"""Layer norm, attention and the MLP of an encoder block as autograd functions on the kernels: what torch's layers compute.

Products are of float32 or bfloat16, weights, biases and their gradients of float32. Beside the kernels' own speed they save
passes over memory: biases are added, and their gradients summed, where their numbers pass by anyway; a norm writes the type that
its layer multiplies, and adds the gradient of the skip connection; the MLP keeps one activation of its width between forward
and backward, not two.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.native.kernels import (
    attention_backward,
    attention_forward,
    gelu_backward_,
    gelu_forward,
    norm_backward,
    norm_forward,
)

Gradients = Tuple[Optional[Tensor], ...]


class SkipAndNorm(torch.autograd.Function):
    """x [..., D] in float32, weight and bias [D], eps, type -> x itself for the skip connection, and its norm of that type."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tuple[Tensor, Tensor]:
        rows = x.contiguous().flatten(0, -2)
        normed, moments = norm_forward(rows, weight, bias, eps, dtype)
        ctx.save_for_backward(rows, weight, moments)
        return x.view_as(x), normed.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_skip: Tensor, of_normed: Tensor) -> Gradients:  # type: ignore[override]
        rows, weight, moments = ctx.saved_tensors
        gradient, skip = (tensor.contiguous().view(rows.shape) for tensor in (of_normed, of_skip))
        of_x, of_weight, of_bias = norm_backward(gradient, skip, rows, weight, moments)
        needs = ctx.needs_input_grad
        return of_x.view(of_skip.shape), of_weight if needs[1] else None, of_bias if needs[2] else None, None, None


class ProjectedAttention(torch.autograd.Function):
    """x [B, N, D], weight [3 * D, D], bias [3 * D], number of heads -> the heads' outputs [B, N, D], in x's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_heads: int) -> Tensor:  # type: ignore[override]
        factor = weight.to(x.dtype)
        qkv = (x.flatten(0, 1) @ factor.t()).view(*x.shape[:2], len(weight))
        out, log_sums = attention_forward(qkv, bias, num_heads)
        ctx.save_for_backward(x, factor, bias, qkv, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        x, factor, bias, qkv, out, log_sums = ctx.saved_tensors
        of_qkv, of_bias = attention_backward(gradient.contiguous(), qkv, bias, out, log_sums)
        rows = of_qkv.flatten(0, 1)
        of_x = (rows @ factor).view_as(x) if ctx.needs_input_grad[0] else None
        of_weight = (rows.t() @ x.flatten(0, 1)).to(bias.dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, of_bias if ctx.needs_input_grad[2] else None, None


class GeluMlp(torch.autograd.Function):
    """x [..., D], first weight [M, D] and bias [M], second weight [D, M] and bias [D] -> [..., D], in x's type."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        factor1, factor2 = weight1.to(x.dtype), weight2.to(x.dtype)
        hidden = x.flatten(0, -2) @ factor1.t()
        ctx.save_for_backward(x, hidden, factor1, bias1, factor2)
        return torch.addmm(bias2.to(x.dtype), gelu_forward(hidden, bias1), factor2.t()).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        x, hidden, factor1, bias1, factor2 = ctx.saved_tensors
        needs, wide = ctx.needs_input_grad, bias1.dtype
        rows = gradient.flatten(0, -2)
        of_hidden, of_bias1, active = gelu_backward_(rows @ factor2, hidden, bias1)
        of_weight2 = (rows.t() @ active).to(wide) if needs[3] else None
        of_bias2 = rows.sum(0, dtype=wide) if needs[4] else None
        of_weight1 = (of_hidden.t() @ x.flatten(0, -2)).to(wide) if needs[1] else None
        of_x = (of_hidden @ factor1).view_as(x) if needs[0] else None
        return of_x, of_weight1, of_bias1 if needs[2] else None, of_weight2, of_bias2
