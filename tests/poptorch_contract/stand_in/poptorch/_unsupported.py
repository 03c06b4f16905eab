"""What a forward must not do on an IPU. Each entry gives the reason."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import torch

from poptorch._errors import Error

_NO_ATTENTION = "the op is not among those that PopTorch supports: write it with matmul and softmax"
_NO_VALUE = "a tensor has no value while the model is compiled: Python cannot look at it"
_NO_SHAPE = "the shape of the result depends on data, and shapes are static on an IPU"
_NO_BACKWARD = "PopTorch adds the backward pass itself: call neither backward() nor grad()"

_REASONS = {
    **dict.fromkeys(
        ("scaled_dot_product_attention", "multi_head_attention_forward", "_native_multi_head_attention"), _NO_ATTENTION
    ),
    **dict.fromkeys(("nan_to_num", "nan_to_num_"), "the op is not supported by PopTorch"),
    **dict.fromkeys(("item", "tolist", "numpy", "__array__", "cpu", "cuda", "is_nonzero"), _NO_VALUE),
    **dict.fromkeys(("__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__"), _NO_VALUE),
    **dict.fromkeys(("equal", "allclose"), _NO_VALUE),
    **dict.fromkeys(("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"), _NO_SHAPE),
    **dict.fromkeys(("backward", "grad"), _NO_BACKWARD),
}


def refuse_op(name: str, args: Any, kwargs: Any) -> None:
    """poptorch.Error for an op that PopTorch lacks, or one used in a way that it lacks."""
    if name in _REASONS:
        raise Error(f"{name}: {_REASONS[name]}")
    if name == "to" and any(_is_cpu(value) for value in (*args, *kwargs.values())):
        raise Error(f"to: {_NO_VALUE}")
    if name in ("__getitem__", "__setitem__") and _has_mask(args[1]):
        raise Error(f"{name} with a mask: {_NO_SHAPE}")
    if name in ("layer_norm", "group_norm", "batch_norm") and _norm_weight(name, args, kwargs) is None:
        raise Error(f"{name}: norm layers need affine=True")
    if name in ("cross_entropy", "nll_loss") and (args[2:3] or (kwargs.get("weight"),))[0] is not None:
        raise Error(f"{name}: weight= is not supported by PopTorch")


def _is_cpu(value: Any) -> bool:
    return value in ("cpu", torch.device("cpu")) if isinstance(value, (str, torch.device)) else False


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


def _norm_weight(name: str, args: Any, kwargs: Any) -> Any:
    position = 3 if name == "batch_norm" else 2
    return args[position] if len(args) > position else kwargs.get("weight")


def refuse_model(model: torch.nn.Module) -> None:
    """poptorch.Error for a model that was compiled by torch."""
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise Error(f"module {name!r} went through torch.compile, which PopTorch does not support")


@contextlib.contextmanager
def no_backward_of_ones_own() -> Iterator[None]:
    """Inside, autograd functions and torch.utils.checkpoint raise, also where they were imported by name before.

    Not published of PopTorch's autograd functions: by its design it derives the backward pass from the forward's ops.
    """
    import torch.utils.checkpoint as checkpoint

    function = torch.autograd.Function
    names = ("checkpoint", "checkpoint_sequential", "_checkpoint_without_reentrant")
    places = [(checkpoint, name, _refuse_checkpoint) for name in (*names, "_checkpoint_without_reentrant_generator")]
    places.append((checkpoint.CheckpointFunction, "apply", _refuse_checkpoint))
    places.append((function, "apply", classmethod(_refuse_function)))
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in places]
    try:
        for owner, name, refuse in places:
            setattr(owner, name, refuse)
        yield
    finally:
        for owner, name, value in before:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _refuse_checkpoint(*args: Any, **kwargs: Any) -> Any:
    raise Error("torch.utils.checkpoint is not supported by PopTorch: use recomputationCheckpoint")


def _refuse_function(cls: type, *args: Any, **kwargs: Any) -> Any:
    raise Error(f"{cls.__name__}: the backward of an autograd function would not be used by PopTorch")
