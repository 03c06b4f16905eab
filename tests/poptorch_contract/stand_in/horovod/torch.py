"""A stand-in for horovod.torch, on the same gloo group as the PopDist stand-in.

Signatures follow 0.28.1. Hosts of IPUs were pinned to 0.24.3, which has every function below, and the ops Average, Sum
and Adasum. Min and Max came with 0.26.0: they exist here only under HOROVOD_STAND_IN_VERSION=0.28.1.
"""

from __future__ import annotations

import inspect
import io
import os
from typing import Any, List

import torch
import torch.distributed as dist
from popdist._instances import Group, group

__version__ = os.environ.get("HOROVOD_STAND_IN_VERSION", "0.24.3")
Average, Sum, Adasum = "Average", "Sum", "Adasum"
if __version__ == "0.28.1":
    Min, Max = "Min", "Max"
global_process_set = "global"
_OPS = {Average: dist.ReduceOp.SUM, Sum: dist.ReduceOp.SUM, "Min": dist.ReduceOp.MIN, "Max": dist.ReduceOp.MAX}
_initialized: List[bool] = []
_LONGEST = 200  # bytes that are compared of a call


class Compression:
    """No compression is all there is."""

    none = "none"


def init(comm: Any = None, process_sets: Any = None) -> None:
    _initialized[:] = [True]
    group()


def is_initialized() -> bool:
    return bool(_initialized)


def shutdown() -> None:
    _initialized.clear()


def _group() -> Group:
    if not _initialized:
        raise ValueError("Horovod has not been initialized; use hvd.init().")
    return group()


def _agree(what: str, name: Any, default: str, *details: Any) -> None:
    """Horovod matches the calls of its processes by name, and waits for ever where they differ. Here that raises."""
    told = repr((what, default if name is None else name, *details)).encode()[:_LONGEST]
    padded = torch.zeros(_LONGEST, dtype=torch.uint8)
    padded[: len(told)] = torch.tensor(list(told), dtype=torch.uint8)
    calls = [bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in _group().gather(padded)]
    if len(set(calls)) > 1:
        raise RuntimeError(f"Horovod would wait for ever: the processes call {calls}")


def rank() -> int:
    return _group().rank


def size() -> int:
    return _group().size


def local_rank() -> int:
    return _group().rank  # all on one host


def local_size() -> int:
    return _group().size


def broadcast(tensor: torch.Tensor, root_rank: int, name: Any = None, process_set: Any = global_process_set) -> Any:
    """A new tensor: the argument stays as it is."""
    _agree("broadcast", name, "broadcast", root_rank, tensor.dtype, tuple(tensor.shape))
    result = tensor.detach().clone()
    _group().broadcast_(result, root_rank)
    return result


def broadcast_(tensor: torch.Tensor, root_rank: int, name: Any = None, process_set: Any = global_process_set) -> Any:
    _group().broadcast_(tensor, root_rank)
    return tensor


def broadcast_parameters(params: Any, root_rank: int) -> None:
    """In place, for a dict, or a list of tensors or of (name, tensor)."""
    if isinstance(params, dict):
        tensors = [tensor for _, tensor in sorted(params.items())]
    elif isinstance(params, list):
        tensors = [param[1] if isinstance(param, tuple) else param for param in params]
    else:
        raise ValueError(f"invalid params of type: {type(params)}")
    for tensor in tensors:
        _group().broadcast_(tensor, root_rank)


def broadcast_object(
    obj: Any = None, root_rank: int = 0, name: Any = None, process_set: Any = global_process_set
) -> Any:
    name = type(obj).__name__ if name is None else name
    packed = _packed(obj if rank() == root_rank else None)
    length = broadcast(torch.tensor([packed.numel()]), root_rank, f"{name}.sz")
    content = packed if rank() == root_rank else torch.empty(int(length), dtype=torch.uint8)
    return _unpacked(broadcast(content, root_rank, f"{name}.t"))


def allreduce(
    tensor: torch.Tensor,
    average: Any = None,
    name: Any = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = global_process_set,
) -> torch.Tensor:
    """A new tensor; the average, unless `op` says otherwise."""
    result = tensor.detach().clone()
    return allreduce_(result, average, name, op, prescale_factor, postscale_factor, process_set)


def allreduce_(
    tensor: torch.Tensor,
    average: Any = None,
    name: Any = None,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = global_process_set,
) -> torch.Tensor:
    """In place."""
    if average is not None:
        raise DeprecationWarning("average= has been deprecated since 0.19: use op=hvd.Average or op=hvd.Sum")
    op = Average if op is None else op
    if op not in _OPS:
        raise NotImplementedError(f"the stand-in has no op {op}")
    if op == Average and not tensor.is_floating_point():
        raise ValueError("the average of integers: use op=hvd.Sum, or floating-point numbers")
    _agree("allreduce", name, "allreduce", op, tensor.dtype, tuple(tensor.shape))
    work = tensor.detach()
    work.mul_(prescale_factor) if prescale_factor != 1.0 else None
    _group().reduce_(work, _OPS[op])
    if op == Average:
        work.div_(size())
    work.mul_(postscale_factor) if postscale_factor != 1.0 else None
    return tensor


def grouped_allreduce(
    tensors: List[torch.Tensor],
    average: Any = None,
    name: Any = None,
    compression: Any = Compression.none,
    op: Any = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: Any = global_process_set,
) -> List[torch.Tensor]:
    scales = (prescale_factor, postscale_factor)
    return [allreduce(tensor, average, name, compression, op, *scales) for tensor in tensors]


def allgather(tensor: torch.Tensor, name: Any = None, process_set: Any = global_process_set) -> torch.Tensor:
    """Along dimension 0, in which ranks may differ."""
    _agree("allgather", name, "allgather", tensor.dtype, tuple(tensor.shape[1:]))
    counts = [int(count) for count in _group().gather(torch.tensor([tensor.shape[0]]))]
    padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor.detach()
    return torch.cat([part[:count] for part, count in zip(_group().gather(padded), counts)])


def allgather_object(obj: Any, name: Any = None, process_set: Any = global_process_set) -> List[Any]:
    packed = _packed(obj)
    counts = [int(count) for count in _group().gather(torch.tensor([packed.numel()]))]
    return [_unpacked(part) for part in allgather(packed).split(counts)]


def barrier(process_set: Any = global_process_set) -> None:
    _group().barrier()


def _packed(obj: Any) -> torch.Tensor:
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpacked(content: torch.Tensor) -> Any:
    buffer = io.BytesIO(bytes(content.tolist()))
    keywords = {"weights_only": False} if "weights_only" in inspect.signature(torch.load).parameters else {}
    return torch.load(buffer, **keywords)
