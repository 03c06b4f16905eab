"""`kernels.cpp` for tensors: plain functions of contiguous tensors on the CPU, in float32 or bfloat16.

Biases, weights of a norm, and their gradients are float32 beside either. Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, Dict, List, Sequence, Tuple, Union

import torch
from torch import Tensor

from models.native.build import BuildError, built_library

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

_NUMBERS, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_ARGUMENTS: Dict[str, List[Any]] = {
    "attention_forward": [_NUMBERS] * 4 + [_SIZE] * 4,
    "attention_backward": [_NUMBERS] * 7 + [_SIZE] * 4,
    "gelu_forward": [_NUMBERS] * 3 + [_SIZE] * 2,
    "gelu_backward": [_NUMBERS] * 5 + [_SIZE] * 2,
    "norm_forward": [_NUMBERS] * 5 + [_FLOAT] + [_SIZE] * 2,
    "norm_backward": [_NUMBERS] * 8 + [_SIZE] * 2,
}


@lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The kernels, compiled at the first time. Raises BuildError where that cannot be done."""
    path = built_library()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error})") from error
    for name, arguments in _ARGUMENTS.items():
        for kind in TYPES.values():
            function = getattr(loaded, f"{name}_{kind}")
            function.argtypes = arguments + [ctypes.c_int]
            function.restype = None
    return loaded


def attention_forward(qkv: Tensor, bias: Tensor, num_heads: int) -> Tuple[Tensor, Tensor]:
    """Softmax attention over the heads of qkv + bias, [B, N, 3 * D] and [3 * D].

    Gives the heads' outputs [B, N, D] and what `attention_backward` needs, [B, H, N] in float32.
    """
    batch, tokens, columns = qkv.shape
    assert bias.shape == (columns,) and columns % (3 * num_heads) == 0, "a bias of another model"
    out = qkv.new_empty(batch, tokens, qkv.shape[2] // 3)
    log_sums = bias.new_empty(batch, num_heads, tokens)
    _run(
        "attention_forward", qkv.dtype, (qkv, out), (bias, log_sums), (qkv, bias, out, log_sums), _sizes(qkv, num_heads)
    )
    return out, log_sums


def attention_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, log_sums: Tensor
) -> Tuple[Tensor, Tensor]:
    """Gradients of qkv and of bias from that of `out`, which `attention_forward` gave."""
    of_qkv, of_bias = torch.empty_like(qkv), torch.empty_like(bias)
    tensors = (gradient, qkv, bias, out, log_sums, of_qkv, of_bias)
    sizes = _sizes(qkv, log_sums.shape[1])
    _run("attention_backward", qkv.dtype, (gradient, qkv, out, of_qkv), (bias, log_sums, of_bias), tensors, sizes)
    return of_qkv, of_bias


def gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of x + bias, [rows, columns] and [columns]: exact, not its approximation by tanh (arXiv 1606.08415)."""
    assert bias.shape == x.shape[1:], "a bias of another layer"
    out = torch.empty_like(x)
    _run("gelu_forward", x.dtype, (x, out), (bias,), (x, bias, out), tuple(x.shape))
    return out


def gelu_backward_(gradient: Tensor, x: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """From the gradient of `gelu_forward`: that of x, in the gradient's place, and that of bias; and the output once more."""
    out, of_bias = torch.empty_like(x), torch.empty_like(bias)
    _run(
        "gelu_backward", x.dtype, (gradient, x, out), (bias, of_bias), (gradient, x, bias, out, of_bias), tuple(x.shape)
    )
    return gradient, of_bias, out


def norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """Layer norm (arXiv 1607.06450) of float32 rows, [rows, columns], in `dtype`.

    Gives it and each row's mean and inverse deviation, [rows, 2].
    """
    assert weight.shape == bias.shape == x.shape[1:], "a norm of another width"
    out, moments = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 2)
    tensors = (x, weight, bias, out, moments)
    _run("norm_forward", dtype, (out,), (x, weight, bias, moments), tensors, (eps, *x.shape))
    return out, moments


def norm_backward(
    gradient: Tensor, skip: Tensor, x: Tensor, weight: Tensor, moments: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """From the gradients of `norm_forward` and of x where it goes on beside it: those of x (their sum), of weight and of bias."""
    of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    tensors = (gradient, skip, x, weight, moments, of_x, of_weight, of_bias)
    _run("norm_backward", gradient.dtype, (gradient,), tensors[1:], tensors, tuple(x.shape))
    return of_x, of_weight, of_bias


def _sizes(qkv: Tensor, num_heads: int) -> Tuple[int, ...]:
    batch, tokens, columns = qkv.shape
    return batch, tokens, num_heads, columns // (3 * num_heads)


def _run(
    name: str,
    dtype: torch.dtype,
    of_type: Sequence[Tensor],
    wide: Sequence[Tensor],
    tensors: Sequence[Tensor],
    rest: Tuple[Union[int, float], ...],
) -> None:
    """Calls a kernel for `dtype` with the pointers of `tensors`: those `of_type` are of it, those that are `wide` float32."""
    for expected, group in ((dtype, of_type), (torch.float32, wide)):
        for tensor in group:
            assert tensor.dtype == expected and tensor.is_contiguous() and not tensor.is_cuda, f"not for {name}"
    function = getattr(library(), f"{name}_{TYPES[dtype]}")
    function(*(tensor.data_ptr() for tensor in tensors), *rest, torch.get_num_threads())
