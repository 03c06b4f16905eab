"""What a config's `precision` means on torch runtimes: the types of products, weights, gradients and optimiser state.

`compute.weights`, as the public PopTorch ViT app names them. Softmax, LayerNorm statistics, the head and the loss are float32
in all of them. Where 16-bit numbers are stored or accumulated (`16.16`, `16.32`, `bf16.16`), the config's accum_type,
first_order_type and second_order_type apply as on the IPU; `32.32` and `bf16.32` keep all in float32.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ContextManager, List, Optional

import torch

from models.products import autocast, multiplies
from optim.stochastic_rounding import has_kernels

if TYPE_CHECKING:
    from config import Config

TYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """The types of one run."""

    compute: torch.dtype  # of matrix products
    weights: torch.dtype
    accumulators: torch.dtype  # of gradients over the micro-batches of a weight update
    first_order: torch.dtype  # of momentum
    second_order: torch.dtype  # of the mean of squares

    @property
    def is_plain(self) -> bool:
        """Whether autograd's own accumulation and a float32 optimiser do all that is needed."""
        return self.weights == self.accumulators == self.first_order == self.second_order == torch.float32

    @property
    def tokens(self) -> torch.dtype:
        """Of the tokens between blocks: autocast adds in float32, half-precision weights in their own type."""
        return self.weights

    def forward(self, device: torch.device) -> ContextManager[None]:
        """Context of a forward pass."""
        if self.compute == self.weights:
            return contextlib.nullcontext()
        return autocast(device, self.compute)


def precision_of(config: Config) -> Precision:
    compute, weights = config.precision.split(".")
    half = TYPES[compute]
    types = {"fp32": torch.float32, "fp16": half if config.stores_16_bits else torch.float32}
    return Precision(
        compute=half,
        weights=half if weights == "16" else torch.float32,
        accumulators=types[config.accum_type],
        first_order=types[config.first_order_type],
        second_order=types[config.second_order_type],
    )


def precision_notes(config: Config, device: torch.device) -> List[str]:
    """What a user should know of the precision on this device."""
    precision = precision_of(config)
    notes: List[Optional[str]] = [_slow_products(config.precision, precision, device)]
    if config.trains and precision.second_order == torch.float16 and config.optimizer in ("Adam", "AdamW", "LAMB"):
        notes.append("second_order_type fp16 cannot hold squares of gradients below 0.0002: fp32 is the safe choice")
    if device.type == "cuda" and config.trains and config.stores_16_bits and not has_kernels(device):
        notes.append(
            "no Triton with a C compiler (gcc or clang): 16-bit weights are stepped and rounded in many passes, which is slower"
        )
    return [note for note in notes if note]


def _slow_products(name: str, precision: Precision, device: torch.device) -> Optional[str]:
    if multiplies(precision.compute, device):
        return None
    kind = "bf16" if precision.compute == torch.bfloat16 else "fp16"
    faster = "bf16.16 or bf16.32" if multiplies(torch.bfloat16, device) else "32.32"
    return (
        f"this CPU has no {kind} instructions: precision {name} rounds to {kind} and multiplies in float32; "
        f"{faster} is the faster choice here"
    )
