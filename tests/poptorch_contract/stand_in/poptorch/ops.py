"""Functions for use inside forward. Outside of a capture they act on the CPU, as PopTorch's do."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

from typing import Any, Callable

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from poptorch._api import checked
from poptorch._errors import Error

REDUCTIONS = ("none", "mean", "sum")


def _seen_by_capture(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(tensor, ...)` becomes one op of a captured program, as torch's own functions do."""

    def call(tensor: torch.Tensor, *args: Any) -> Any:
        if has_torch_function_unary(tensor):
            return handle_torch_function(call, (tensor,), tensor, *args)
        return function(tensor, *args)

    call.__name__ = function.__name__.lstrip("_")
    return call


@_seen_by_capture
def _identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    return x.clone() if reduction == "none" else x.mean() if reduction == "mean" else x.sum()


@_seen_by_capture
def _checkpoint(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view_as(tensor)


@_seen_by_capture
def _same(tensor: torch.Tensor, *told: Any) -> torch.Tensor:
    return tensor.view_as(tensor)


@_seen_by_capture
def _matmul(lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    return torch.matmul(lhs, rhs)


@checked("poptorch.identity_loss")
def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Marks `x` as the loss."""
    if reduction not in REDUCTIONS:
        raise Error(f"identity_loss: reduction {reduction!r} is none of {REDUCTIONS}")
    return _identity_loss(x, reduction)


@checked("poptorch.recomputationCheckpoint")
def recomputationCheckpoint(*tensors: torch.Tensor) -> Any:
    """The tensors themselves, kept instead of computed again in the backward pass."""
    kept = tuple(_checkpoint(tensor) for tensor in tensors)
    return kept[0] if len(kept) == 1 else kept


@checked("poptorch.set_available_memory")
def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    if not 0.0 < available_memory_proportion <= 1.0:
        raise Error(f"available_memory_proportion is {available_memory_proportion}, not in (0, 1]")
    return _same(tensor, available_memory_proportion)


@checked("poptorch.nop")
def nop(tensor: torch.Tensor) -> torch.Tensor:
    return _same(tensor)


@checked("poptorch.serializedMatMul")
def serializedMatMul(
    lhs: torch.Tensor, rhs: torch.Tensor, mode: Any, factor: int = 0, keep_precision: bool = False
) -> torch.Tensor:
    """A matmul: in how many parts it is done does not change its value here."""
    return _matmul(lhs, rhs)


@checked("poptorch.set_overlap_for_input")
def set_overlap_for_input(input_tensors: Any, mode: Any) -> Any:
    return input_tensors


@checked("poptorch.set_overlap_for_output")
def set_overlap_for_output(output_tensors: Any, mode: Any) -> Any:
    return output_tensors
