"""How one op computes where an IPU differs from torch on a CPU: half precision, and labels of 32 bits."""

from __future__ import annotations

from typing import Any, Callable

import torch

_MULTIPLICATIONS = {"linear", "conv2d", "conv1d", "matmul", "__matmul__", "bmm", "addmm", "mm", "baddbmm"}
# On a CPU these take 64-bit indices alone; on an IPU all integers have 32 bits.
_INDEXED = {"cross_entropy", "nll_loss", "one_hot", "gather", "scatter", "scatter_", "index_select", "embedding"}


def is_multiplication(name: str) -> bool:
    return name in _MULTIPLICATIONS


def compute(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """func(*args, **kwargs), as an IPU would do it."""
    if name in _INDEXED:
        args, kwargs = each_tensor(_to_long, args), each_tensor(_to_long, kwargs)
    if name in _MULTIPLICATIONS and _is_half(args[0]) and any(_is_float(value) for value in (*args, *kwargs.values())):
        return _in_single(func, args, kwargs)  # fp16 activations and fp32 weights give fp16
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if "not implemented for 'Half'" not in str(error):
            raise
        return _in_single(func, args, kwargs)


def each_tensor(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """`value` with every tensor in its tuples, lists, dicts and slices changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(each_tensor(change, part) for part in value))
    if isinstance(value, (tuple, list)):
        parts = [each_tensor(change, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, dict):
        return type(value)((key, each_tensor(change, part)) for key, part in value.items())
    return value


def _in_single(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    def up(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    def down(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.half() if tensor.dtype == torch.float32 else tensor

    return each_tensor(down, func(*each_tensor(up, args), **each_tensor(up, kwargs)))


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float16


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _to_long(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.long() if tensor.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8) else tensor
