"""What travels from the loader to a runtime: the batches, and which part of them a process needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from torch import Tensor


@dataclass(frozen=True)
class DataShare:
    """The part of every host batch that one process needs.

    `replicas` are the replica indices (of `replication_factor`) whose samples this process works on. The first stage needs
    images, the last needs targets, those between need neither.
    """

    replicas: Tuple[int, ...]
    images: bool = True
    targets: bool = True


@dataclass(frozen=True)
class HostBatch:
    """One process's share of the samples of one host step.

    Dim 0 of `images` and `targets` is [device iteration][accumulation][own replica][micro], flattened. What the share does
    not need is None. `mixup_lambda` [device_iterations] holds one mixing weight a weight update, where mixup is on.
    """

    epoch: int
    step: int  # host step within the epoch, from 0
    images: Optional[Tensor]  # uint8 [S, C, H, W]
    targets: Optional[Tensor]  # int64 [S]
    mixup_lambda: Optional[Tensor] = None  # float32 [device_iterations]


@dataclass(frozen=True)
class EvalBatch:
    """A batch of fixed size for evaluation; only its first `num_valid` rows are samples, the rest is padding."""

    num_valid: int
    images: Optional[Tensor]  # uint8 [B, C, H, W]
    targets: Optional[Tensor]  # int64 [B]
