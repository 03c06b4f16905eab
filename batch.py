"""What travels from the loader to a runtime: the batches, and which part of them a process needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generator, Optional, Tuple

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
    not need is None. Where images are mixed with their predecessors in the micro-batch, `mix` says for each how
    (`dataset.mixing`), and `label_weights` how much of the target is its own label.
    """

    epoch: int
    step: int  # host step within the epoch, from 0
    images: Optional[Tensor]  # uint8 [S, C, H, W]
    targets: Optional[Tensor]  # int64 [S], or uint8 [S, K] of 0 and 1 where images have several labels
    mix: Optional[Tensor] = None  # float32 [S, 1] or [S, 5]
    label_weights: Optional[Tensor] = None  # float32 [S]
    num_replaced: int = 0  # images of this share that could not be read, for which others stand


HostBatches = Generator[HostBatch, None, None]  # which can be closed before its end


@dataclass(frozen=True)
class EvalBatch:
    """A batch of fixed size for evaluation; only its first `num_valid` rows are samples, the rest is padding.

    `rows` are those of them that count: all but the ones whose images could not be read.
    """

    num_valid: int
    rows: Tensor  # int64 [at most num_valid]
    indices: Tensor  # int64 [num_valid], of its samples in the validation set
    images: Optional[Tensor]  # uint8 [B, C, H, W]
    targets: Optional[Tensor]  # int64 [B], or uint8 [B, K]
