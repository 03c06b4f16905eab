"""The processes of a run, told by the environment, and sums between them: gloo, over a file that they share."""

from __future__ import annotations

import atexit
import contextlib
import os
from datetime import timedelta
from typing import Any, List, Optional

import torch
import torch.distributed as dist

_PREFIX = "POPDIST_STAND_IN_"
_TIMEOUT = timedelta(seconds=120)


def is_set() -> bool:
    return f"{_PREFIX}NUM_INSTANCES" in os.environ


def setting(name: str, default: int) -> int:
    return int(os.environ.get(_PREFIX + name, default))


class Group:
    """All instances. Alone, every operation is the identity."""

    def __init__(self) -> None:
        self.size = setting("NUM_INSTANCES", 1)
        self.rank = setting("INSTANCE", 0)
        self._gloo: Optional[Any] = None
        if self.size > 1:
            path = os.environ[f"{_PREFIX}RENDEZVOUS"]
            store = dist.FileStore(path, self.size)
            # Not init_process_group: whoever is tested may want torch's default group for itself.
            self._gloo = dist.ProcessGroupGloo(store, self.rank, self.size, _TIMEOUT)
            atexit.register(self._leave)

    def _leave(self) -> None:
        """All together, and before Python goes: gloo's threads would end the process by an abort now and then."""
        with contextlib.suppress(RuntimeError):  # another process has failed, and is not waited for
            assert self._gloo is not None
            self._gloo.allreduce([torch.zeros(1)]).wait(timedelta(seconds=10))
        self._gloo = None

    def reduce_(self, tensor: torch.Tensor, op: Any) -> None:
        if self._gloo is not None:
            options = dist.AllreduceOptions()
            options.reduceOp = op
            work = tensor.detach().contiguous()
            self._gloo.allreduce([work], options).wait()
            tensor.detach().copy_(work)

    def sum_(self, tensor: torch.Tensor) -> None:
        self.reduce_(tensor, dist.ReduceOp.SUM)

    def broadcast_(self, tensor: torch.Tensor, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"root rank {root} of {self.size} processes")
        if self._gloo is not None:
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor = root, 0
            work = tensor.detach().contiguous()
            self._gloo.broadcast([work], options).wait()
            tensor.detach().copy_(work)

    def gather(self, tensor: torch.Tensor) -> List[torch.Tensor]:
        """The tensor of every rank; all of one shape."""
        tensor = tensor.detach().contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        if self._gloo is None:
            return [tensor.clone()]
        self._gloo.allgather([parts], [tensor]).wait()
        return parts

    def barrier(self) -> None:
        self.sum_(torch.zeros(1))


_group: List[Group] = []


def group() -> Group:
    """Made at the first call, which all instances have to reach."""
    if not _group:
        _group.append(Group())
    return _group[0]
