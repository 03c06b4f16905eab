"""`kernels.cpp` for tensors: plain functions of contiguous float32 tensors on the CPU.

Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Tuple

import torch
from torch import Tensor

from models.native.build import BuildError, built_library

_POINTERS_AND_SIZES = {
    "attention_forward": (4, 4),
    "attention_backward": (7, 4),
    "gelu_forward": (3, 2),
    "gelu_backward": (5, 2),
}


@lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The kernels, compiled at the first time. Raises BuildError where that cannot be done."""
    path = built_library()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error})") from error
    for name, (pointers, sizes) in _POINTERS_AND_SIZES.items():
        function = getattr(loaded, name)
        function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_long] * sizes + [ctypes.c_int]
        function.restype = None
    return loaded


def attention_forward(qkv: Tensor, bias: Tensor, num_heads: int) -> Tuple[Tensor, Tensor]:
    """Softmax attention over the heads of qkv + bias, [B, N, 3 * D] and [3 * D].

    Gives the heads' outputs [B, N, D] and what `attention_backward` needs, [B, H, N].
    """
    batch, tokens, columns = qkv.shape
    assert bias.shape == (columns,) and columns % (3 * num_heads) == 0, "a bias of another model"
    out = qkv.new_empty(batch, tokens, qkv.shape[2] // 3)
    log_sums = qkv.new_empty(batch, num_heads, tokens)
    _run("attention_forward", (qkv, bias, out, log_sums), _sizes(qkv, num_heads))
    return out, log_sums


def attention_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, log_sums: Tensor
) -> Tuple[Tensor, Tensor]:
    """Gradients of qkv and of bias from that of `out`, which `attention_forward` gave."""
    of_qkv, of_bias = torch.empty_like(qkv), torch.empty_like(bias)
    tensors = (gradient, qkv, bias, out, log_sums, of_qkv, of_bias)
    _run("attention_backward", tensors, _sizes(qkv, log_sums.shape[1]))
    return of_qkv, of_bias


def gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of x + bias, [rows, columns] and [columns]: exact, not its approximation by tanh (arXiv 1606.08415)."""
    assert bias.shape == x.shape[1:], "a bias of another layer"
    out = torch.empty_like(x)
    _run("gelu_forward", (x, bias, out), tuple(x.shape))
    return out


def gelu_backward_(gradient: Tensor, x: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """From the gradient of `gelu_forward`: that of x, in the gradient's place, and that of bias; and the output once more."""
    out, of_bias = torch.empty_like(x), torch.empty_like(bias)
    _run("gelu_backward", (gradient, x, bias, out, of_bias), tuple(x.shape))
    return gradient, of_bias, out


def _sizes(qkv: Tensor, num_heads: int) -> Tuple[int, ...]:
    batch, tokens, columns = qkv.shape
    return batch, tokens, num_heads, columns // (3 * num_heads)


def _run(name: str, tensors: Tuple[Tensor, ...], sizes: Tuple[int, ...]) -> None:
    for tensor in tensors:
        assert tensor.dtype == torch.float32 and tensor.is_contiguous() and not tensor.is_cuda, f"not for {name}"
    getattr(library(), name)(*(tensor.data_ptr() for tensor in tensors), *sizes, torch.get_num_threads())
