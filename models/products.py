"""Matrix products in 16 bits, also on CPUs that have no instructions for them.

There, torch multiplies fp16 and bf16 ten to forty times slower than float32. The same numbers come out faster by widening:
products of two 16-bit numbers are exact in float32, and sums are made in float32 either way; only the result is rounded.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import machine
from models.native.functions import SkipAndNorm
from models.native.kernels import TYPES

HALF_TYPES = (torch.float16, torch.bfloat16)
_FIRST_BF16_GPU = (8, 0)  # NVIDIA's compute capability
_FEWEST_ROWS = 16  # of a product on a CPU: see `with_rows_enough`


def _computes_half() -> bool:
    """Whether this torch has products, GELU and dropout of fp16 on CPUs: 2.0, which PopTorch needs, has not."""
    try:
        F.gelu(torch.zeros(1, dtype=torch.float16))
    except RuntimeError:
        return False
    return True


def _autocasts_half() -> bool:
    """Whether this torch's autocast knows fp16 on CPUs: that of 2.0 warns and does nothing."""
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        torch.autocast("cpu", torch.float16)
    return not complaints


# Found out once: compiled code takes them for constants.
_COMPUTES_HALF, _AUTOCASTS_HALF = _computes_half(), _autocasts_half()
_WIDENED_ON_CPU = tuple(
    dtype
    for dtype in HALF_TYPES
    if not machine.cpu_multiplies(str(dtype).split(".")[-1]) or (dtype == torch.float16 and not _COMPUTES_HALF)
)
_own_type: Optional[torch.dtype] = None  # of `computing`


class Linear(nn.Linear):
    """torch's linear layer through `linear`: weights of 16 bits serve inputs of 32, and the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """torch's layer norm, in float32 in any precision, over weights of another type, too."""

    native = False  # see `VisionTransformer.use_native_kernels`

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)

    def beside(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """x for a skip connection, and its norm for the branch: the kernel adds their gradients in one pass."""
        if not self.native or x.dtype != torch.float32 or not kernels_take(x):
            return x, self(x)
        skip, normed = SkipAndNorm.apply(x, self.weight, self.bias, self.eps, type_of_products(x))
        return skip, normed


class LayerScale(nn.Module):
    """A trained factor for each channel of a branch (arXiv 2103.17239), [B, N, D] -> [B, N, D], of the input's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        return (wide * self.gamma.to(wide.dtype)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    # Of 16-bit tensors torch adds the weights' gradients up in 16 bits on CPUs: in bfloat16 most of them is lost.
    return x.float() if x.dtype in HALF_TYPES and x.device.type == "cpu" else x


class Dropout(nn.Dropout):
    """torch's dropout, also of fp16 where torch has none."""

    def forward(self, x: Tensor) -> Tensor:
        return in_own_type(super().forward, x)


def in_own_type(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`; in float32, with the result rounded, where torch lacks the function in fp16."""
    if x.dtype == torch.float16 and x.device.type == "cpu" and not _COMPUTES_HALF:
        return function(x.float()).to(x.dtype)
    return function(x)


def autocast(device: torch.device, dtype: Optional[torch.dtype]) -> ContextManager[Any]:
    """torch's autocast to `dtype`; to none, where it is None; to fp16 on CPUs, too, where torch's own does not know it."""
    if dtype is None:
        return _no_autocast(device)
    if dtype == torch.float16 and device.type == "cpu" and not _AUTOCASTS_HALF:
        return computing(dtype)
    return torch.autocast(device.type, dtype=dtype)


@contextmanager
def computing(dtype: Optional[torch.dtype]) -> Iterator[None]:
    """Context in which linear layers multiply in `dtype` and nothing else changes; None: in their input's.

    What autocast does for this model, where a device has none: PopTorch gave its up in version 3.1.
    """
    global _own_type
    before, _own_type = _own_type, dtype
    try:
        yield
    finally:
        _own_type = before


@contextmanager
def _no_autocast(device: torch.device) -> Iterator[None]:
    # torch 2.0 refuses to turn off what other devices do not have.
    own = torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()
    with computing(None), own:
        yield


def as_autocast_now(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function, to be called again in the backward pass: torch restores its own autocast there, but not `_own_type`."""
    dtype = _own_type
    if dtype is None:
        return function

    def again(x: Tensor) -> Tensor:
        with computing(dtype):
            return function(x)

    return again


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """`x @ weight.T + bias`, [..., in] -> [..., out], in autocast's or `computing`'s type where one is on, else in x's own."""
    assert bias is not None, "every layer of the model has one"
    return with_rows_enough(lambda rows: _linear(rows, weight, bias), x)


def with_rows_enough(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`function(x)`, one tensor or a tuple, which goes over rows [..., in]; with rows of zeros where gradients are recorded on a
    CPU and there are fewer than 16.

    Matrix libraries sum products of few rows in another order. So the class token of an image alone, or of a micro-batch of two,
    trains as it does among many.
    """
    if not torch.is_grad_enabled() or x.device.type != "cpu":
        return function(x)
    count = x.numel() // x.shape[-1]
    if not 0 < count < _FEWEST_ROWS:
        return function(x)
    found = function(F.pad(x.flatten(0, -2), (0, 0, 0, _FEWEST_ROWS - count)))
    several = found if isinstance(found, tuple) else (found,)
    rows = tuple(tensor[:count].view(*x.shape[:-1], -1) for tensor in several)
    return rows if isinstance(found, tuple) else rows[0]


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = type_of_products(x)
    if dtype in HALF_TYPES and not multiplies(dtype, x.device):
        return _WidenedLinear.apply(x.to(dtype), weight, bias)
    x = x if _own_type is None else x.to(_own_type)
    return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def type_of_products(x: Tensor) -> torch.dtype:
    """What a linear layer multiplies x in: autocast's type (on CPUs) or `computing`'s where one is on, else x's own."""
    return _own_type or _autocast_type(x.device) or x.dtype


def kernels_take(x: Tensor) -> bool:
    """Whether the native kernels compute in the type that x is multiplied in."""
    dtype = type_of_products(x)
    return dtype in TYPES and multiplies(dtype, x.device)


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of this type as fast as it can: not by widening number after number."""
    return device.type != "cpu" or dtype not in _WIDENED_ON_CPU


def gpu_computes_bf16(device: Optional[torch.device] = None) -> bool:
    """Whether a GPU, else the process's own, has instructions for it: NVIDIA's from Ampere on."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= _FIRST_BF16_GPU


def _autocast_type(device: torch.device) -> Optional[torch.dtype]:
    if device.type != "cpu":  # torch's own products follow autocast there
        return None
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


class _WidenedLinear(torch.autograd.Function):
    """A linear layer on 16-bit operands, multiplied in float32; between forward and backward it keeps 16 bits only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), _widened(weight, x.dtype), _widened(bias, x.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wide = gradient.float().flatten(0, -2)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (wide @ _widened(weight, x.dtype)).to(x.dtype).view(x.shape)
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            of_weight = (wide.t() @ x.float().flatten(0, -2)).to(x.dtype).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = wide.sum(0).to(x.dtype).to(weight.dtype)
        return of_x, of_weight, of_bias


def _widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 of what is left of a tensor in 16 bits."""
    return tensor.to(dtype).float()
