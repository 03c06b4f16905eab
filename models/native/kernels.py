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

# The tensors of each kernel, in order: N for those of the kernel's type, W for those that are float32 (wide) beside either; then
# what follows them.
_SIZE, _FLOAT = ctypes.c_long, ctypes.c_float
_ARGUMENTS: Dict[str, Tuple[str, List[Any]]] = {
    "attention_forward": ("NWNW", [_SIZE] * 4),
    "attention_backward": ("NNWNWNW", [_SIZE] * 4),
    "few_queries_forward": ("NNNW", [_SIZE] * 5),
    "few_queries_backward": ("NNNWNN", [_SIZE] * 5),
    "gelu_forward": ("NWN", [_SIZE] * 2),
    "gelu_backward": ("NNWNW", [_SIZE] * 2),
    "norm_forward": ("WWWNW", [_FLOAT] + [_SIZE] * 2),
    "norm_backward": ("NWWWWWWW", [_SIZE] * 2),
}


@lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The kernels, compiled at the first time. Raises BuildError where that cannot be done."""
    path = built_library()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error})") from error
    for name, (tensors, rest) in _ARGUMENTS.items():
        for kind in TYPES.values():
            function = getattr(loaded, f"{name}_{kind}")
            function.argtypes = [ctypes.c_void_p] * len(tensors) + rest + [ctypes.c_int]
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
    _run("attention_forward", qkv.dtype, (qkv, bias, out, log_sums), _sizes(qkv, num_heads))
    return out, log_sums


def attention_backward(
    gradient: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, log_sums: Tensor
) -> Tuple[Tensor, Tensor]:
    """Gradients of qkv and of bias from that of `out`, which `attention_forward` gave."""
    of_qkv, of_bias = torch.empty_like(qkv), torch.empty_like(bias)
    tensors = (gradient, qkv, bias, out, log_sums, of_qkv, of_bias)
    _run("attention_backward", qkv.dtype, tensors, _sizes(qkv, log_sums.shape[1]))
    return of_qkv, of_bias


def few_queries_forward(queries: Tensor, keys_values: Tensor, num_heads: int) -> Tuple[Tensor, Tensor]:
    """Softmax attention of a few queries, [B, Q, D], over keys and values, [B, N, 2 * D].

    Gives the heads' outputs [B, Q, D] and what `few_queries_backward` needs, the weights [B, Q, H, N] in float32.
    """
    batch, count, width = queries.shape
    tokens = keys_values.shape[1]
    assert keys_values.shape == (batch, tokens, 2 * width) and width % num_heads == 0, "keys of other queries"
    out = torch.empty_like(queries)
    weights = torch.empty(batch, count, num_heads, tokens, dtype=torch.float32)
    sizes = (batch, count, tokens, num_heads, width // num_heads)
    _run("few_queries_forward", queries.dtype, (queries, keys_values, out, weights), sizes)
    return out, weights


def few_queries_backward(
    gradient: Tensor, queries: Tensor, keys_values: Tensor, weights: Tensor
) -> Tuple[Tensor, Tensor]:
    """Gradients of queries and of keys_values from that of `out`, which `few_queries_forward` gave."""
    of_queries, of_keys_values = torch.empty_like(queries), torch.empty_like(keys_values)
    batch, count, num_heads, tokens = weights.shape
    sizes = (batch, count, tokens, num_heads, queries.shape[2] // num_heads)
    tensors = (gradient, queries, keys_values, weights, of_queries, of_keys_values)
    _run("few_queries_backward", queries.dtype, tensors, sizes)
    return of_queries, of_keys_values


def gelu_forward(x: Tensor, bias: Tensor) -> Tensor:
    """GELU of x + bias, [rows, columns] and [columns]: exact, not its approximation by tanh (arXiv 1606.08415)."""
    assert bias.shape == x.shape[1:], "a bias of another layer"
    out = torch.empty_like(x)
    _run("gelu_forward", x.dtype, (x, bias, out), tuple(x.shape))
    return out


def gelu_backward_(gradient: Tensor, x: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """From the gradient of `gelu_forward`: that of x, in the gradient's place, and that of bias; and the output once more."""
    out, of_bias = torch.empty_like(x), torch.empty_like(bias)
    _run("gelu_backward", x.dtype, (gradient, x, bias, out, of_bias), tuple(x.shape))
    return gradient, of_bias, out


def norm_forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
    """Layer norm (arXiv 1607.06450) of float32 rows, [rows, columns], in `dtype`.

    Gives it and each row's mean and inverse deviation, [rows, 2].
    """
    assert weight.shape == bias.shape == x.shape[1:], "a norm of another width"
    out, moments = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 2)
    _run("norm_forward", dtype, (x, weight, bias, out, moments), (eps, *x.shape))
    return out, moments


def norm_backward(
    gradient: Tensor, skip: Tensor, x: Tensor, weight: Tensor, moments: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    """From the gradients of `norm_forward` and of x where it goes on beside it: those of x (their sum), of weight and of bias."""
    of_x, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    tensors = (gradient, skip, x, weight, moments, of_x, of_weight, of_bias)
    _run("norm_backward", gradient.dtype, tensors, tuple(x.shape))
    return of_x, of_weight, of_bias


def _sizes(qkv: Tensor, num_heads: int) -> Tuple[int, ...]:
    batch, tokens, columns = qkv.shape
    return batch, tokens, num_heads, columns // (3 * num_heads)


def _run(name: str, dtype: torch.dtype, tensors: Sequence[Tensor], rest: Tuple[Union[int, float], ...]) -> None:
    """Calls the kernel for `dtype` with the pointers of `tensors`, which are to be as `_ARGUMENTS` says."""
    for kind, tensor in zip(_ARGUMENTS[name][0], tensors):
        expected = dtype if kind == "N" else torch.float32
        assert tensor.dtype == expected and tensor.is_contiguous() and not tensor.is_cuda, f"not for {name}"
    function = getattr(library(), f"{name}_{TYPES[dtype]}")
    function(*(tensor.data_ptr() for tensor in tensors), *rest, torch.get_num_threads())
