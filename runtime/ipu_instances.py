"""What instances that poprun has started tell each other on the host, through Horovod; gradients go from IPU to IPU.

Horovod's functions are those that version 0.24 has, too.
"""

from __future__ import annotations

from typing import Any, List, Mapping

import torch
from torch import Tensor

from ipu_options import Poprun


class OneInstance:
    """A process that runs all replicas by itself."""

    index = 0
    count = 1

    def broadcast(self, weights: Mapping[str, Tensor]) -> None:
        """Gives every instance the first one's weights, in place."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the instances."""
        return values

    def maximum(self, value: int) -> int:
        """The largest of the instances' values."""
        return value

    def from_first(self, value: Any) -> Any:
        """The first instance's value."""
        return value

    def gather(self, value: Any) -> List[Any]:
        """Every instance's value, in their order."""
        return [value]


class PoprunInstances(OneInstance):
    """One of several. All call the same methods in the same order."""

    def __init__(self, poprun: Poprun) -> None:
        import horovod.torch as hvd

        self._hvd = hvd  # initialised where poprun was noticed
        self.index, self.count = poprun.instance, poprun.num_instances

    def broadcast(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in sorted(weights.items()):
            value.copy_(self._hvd.broadcast(value, root_rank=0, name=f"weights.{name}"))

    def sum(self, values: Tensor) -> Tensor:
        return self._hvd.allreduce(values, name="sum", op=self._hvd.Sum)

    def maximum(self, value: int) -> int:
        return int(self._hvd.allgather(torch.tensor([value]), name="maximum").max())

    def from_first(self, value: Any) -> Any:
        # Horovod matches calls by name, and without one takes the value's type, which is another in each instance.
        return self._hvd.broadcast_object(value, root_rank=0, name="from_first")

    def gather(self, value: Any) -> List[Any]:
        return [self._hvd.broadcast_object(value, instance, f"gather.{instance}") for instance in range(self.count)]
