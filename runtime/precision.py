"""The dtype that a config's `precision` computes in on torch runtimes. Weights, gradients and optimiser state are float32."""

from __future__ import annotations

import contextlib
from typing import ContextManager, Optional

import torch

HALF_PRECISIONS = ("16.16", "16.32")


def computed_precision(precision: str) -> str:
    """`16.16` and `16.32` (half-precision weights or compute, as on the IPU) run as `32.32` here; the run says so."""
    return "32.32" if precision in HALF_PRECISIONS else precision


def precision_note(precision: str) -> Optional[str]:
    if precision not in HALF_PRECISIONS:
        return None
    return f"precision {precision} runs as {computed_precision(precision)} on this runtime (bf16.32 is the faster choice on GPUs)"


def autocast(precision: str, device: torch.device) -> ContextManager[None]:
    """Context of a forward pass: matrix products in bfloat16 for `bf16.32`; softmax, LayerNorm and loss stay in float32."""
    if computed_precision(precision) == "bf16.32":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
