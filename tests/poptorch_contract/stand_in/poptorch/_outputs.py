"""What forward may return, and what the host can do with it."""

from __future__ import annotations

from typing import Any, List

import torch

from poptorch._capture import Slot
from poptorch._errors import Error


def slots_in(output: Any) -> List[int]:
    """The slots in what a captured forward returned. poptorch.Error for anything but tensors."""
    if isinstance(output, Slot):
        return [output]
    if not isinstance(output, (tuple, list, dict)):
        raise Error(f"forward returned a {type(output).__name__}: all outputs must be tensors")
    parts = output.values() if isinstance(output, dict) else output
    return sorted({slot for part in parts for slot in slots_in(part)})


def without_backward(tensor: torch.Tensor) -> torch.Tensor:
    def backward(*args: Any, **kwargs: Any) -> None:
        raise Error("backward() can not be called: trainingModel runs the backward pass and the update by itself")

    tensor.backward = backward  # type: ignore[method-assign]
    return tensor
