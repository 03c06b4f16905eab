"""The branches of an encoder block as autograd functions on the kernels: what torch's layers compute.

A branch begins with its norm; that of the last block, for few queries, is put together in `models.vit`. Products are of float32
or bfloat16; the skip connection, weights, biases and their gradients are of float32. Beside the kernels' own speed they save
passes over memory and what autograd does for every operation: biases are added, and their gradients summed, where their numbers
pass by anyway; a norm writes the type that its layer multiplies, and adds the gradient of the skip connection; the MLP keeps
one activation of its width between forward and backward, not two.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.native.kernels import (
    attention_backward,
    attention_forward,
    few_queries_backward,
    few_queries_forward,
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
        return (*_of_norm(ctx, of_skip, of_normed, *ctx.saved_tensors), None, None)


def _of_norm(ctx: Any, of_skip: Tensor, of_normed: Tensor, rows: Tensor, weight: Tensor, moments: Tensor) -> Gradients:
    """Gradients of a function's first three inputs: x, which went on and was normed, and the norm's weight and bias."""
    gradient, skip = (tensor.contiguous().view(rows.shape) for tensor in (of_normed, of_skip))
    of_x, of_weight, of_bias = norm_backward(gradient, skip, rows, weight, moments)
    needs = ctx.needs_input_grad
    return of_x.view(of_skip.shape), of_weight if needs[1] else None, of_bias if needs[2] else None


class NormedAttention(torch.autograd.Function):
    """x [B, N, D] in float32 -> x itself for the skip connection, and projected attention of its norm, in `dtype`.

    Weight and bias are [D] of the norm, [3 * D, D] and [3 * D] of queries, keys and values, [D, D] and [D] of the projection.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        proj_weight: Tensor,
        proj_bias: Tensor,
        eps: float,
        num_heads: int,
        dtype: torch.dtype,
    ) -> Tuple[Tensor, Tensor]:
        rows, qkv_factor, proj_factor = x.contiguous().flatten(0, -2), qkv_weight.to(dtype), proj_weight.to(dtype)
        normed, moments = norm_forward(rows, norm_weight, norm_bias, eps, dtype)
        qkv = (normed @ qkv_factor.t()).view(*x.shape[:-1], len(qkv_weight))
        context, log_sums = attention_forward(qkv, qkv_bias, num_heads)
        out = torch.addmm(proj_bias.to(dtype), context.flatten(0, 1), proj_factor.t())
        of_norm = (rows, norm_weight, moments)
        ctx.save_for_backward(*of_norm, normed, qkv_factor, qkv_bias, qkv, context, log_sums, proj_factor)
        return x.view_as(x), out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_skip: Tensor, gradient: Tensor) -> Gradients:  # type: ignore[override]
        *of_norm, normed, qkv_factor, qkv_bias, qkv, context, log_sums, proj_factor = ctx.saved_tensors
        needs, wide, rows = ctx.needs_input_grad, qkv_bias.dtype, gradient.flatten(0, 1)
        of_context = (rows @ proj_factor).view_as(context)
        of_qkv, of_qkv_bias = attention_backward(of_context, qkv, qkv_bias, context, log_sums)
        of_products = of_qkv.flatten(0, 1)
        of_weights = (
            (of_products.t() @ normed).to(wide) if needs[3] else None,
            of_qkv_bias if needs[4] else None,
            (rows.t() @ context.flatten(0, 1)).to(wide) if needs[5] else None,
            rows.sum(0, dtype=wide) if needs[6] else None,
        )
        return (*_of_norm(ctx, of_skip, of_products @ qkv_factor, *of_norm), *of_weights, None, None, None)


class NormedMlp(torch.autograd.Function):
    """x [..., D] in float32 -> x itself for the skip connection, and the MLP of its norm, in `dtype`.

    Weight and bias are [D] of the norm, [M, D] and [M] of the first layer, [D, M] and [D] of the second.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> Tuple[Tensor, Tensor]:
        rows, factor1, factor2 = x.contiguous().flatten(0, -2), weight1.to(dtype), weight2.to(dtype)
        normed, moments = norm_forward(rows, norm_weight, norm_bias, eps, dtype)
        hidden = normed @ factor1.t()
        ctx.save_for_backward(rows, norm_weight, moments, normed, hidden, factor1, bias1, factor2)
        out = torch.addmm(bias2.to(dtype), gelu_forward(hidden, bias1), factor2.t())
        return x.view_as(x), out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_skip: Tensor, gradient: Tensor) -> Gradients:  # type: ignore[override]
        *of_norm, normed, hidden, factor1, bias1, factor2 = ctx.saved_tensors
        needs, wide, rows = ctx.needs_input_grad, bias1.dtype, gradient.flatten(0, -2)
        of_hidden, of_bias1, active = gelu_backward_(rows @ factor2, hidden, bias1)
        of_weights = (
            (of_hidden.t() @ normed).to(wide) if needs[3] else None,
            of_bias1 if needs[4] else None,
            (rows.t() @ active).to(wide) if needs[5] else None,
            rows.sum(0, dtype=wide) if needs[6] else None,
        )
        return (*_of_norm(ctx, of_skip, of_hidden @ factor1, *of_norm), *of_weights, None, None)


class FewQueries(torch.autograd.Function):
    """Queries [B, Q, D], keys and values [B, N, 2 * D], number of heads -> the heads' outputs [B, Q, D], in the same type."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys_values: Tensor, num_heads: int) -> Tensor:  # type: ignore[override]
        queries = queries.contiguous()
        out, weights = few_queries_forward(queries, keys_values, num_heads)
        ctx.save_for_backward(queries, keys_values, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        return (*few_queries_backward(gradient.contiguous(), *ctx.saved_tensors), None)
