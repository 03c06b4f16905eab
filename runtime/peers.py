"""What a weight update needs of the processes that hold the other stages and the other replicas."""

from __future__ import annotations

from typing import Any, List

from torch import Tensor


class Peers:
    """A process that holds all stages and works through all replicas by itself; `runtime.pipeline` has the other kind."""

    replica_group = 0  # which of the groups of processes that hold a replica each this one is in…
    num_replica_groups = 1  # …of how many

    def sum_over_stages(self, value: Tensor) -> Tensor:
        """Sum over the processes that hold the stages of this replica."""
        return value

    def sum_over_replicas(self, value: Tensor) -> None:
        """Sum, in place, over the processes that hold the same stages of other replicas."""

    def share_over_replicas(self, value: Tensor, owner: int) -> None:
        """Makes `value` what replica group `owner` has in it, in all processes that hold the same stages."""

    def gather(self, value: Any) -> List[Any]:
        """Every process's value."""
        return [value]
