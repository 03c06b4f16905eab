"""Exact evaluation: sums over every sample once, added up over batches and processes before anything is divided."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses import classification_loss

TOP_K = 5


@dataclass(frozen=True)
class EvalResult:
    """Means over `num_samples` samples; top5 is top-K where there are fewer than five classes."""

    loss: float
    top1: float
    top5: float
    num_samples: int


def empty_totals() -> Tensor:
    """[loss, top-1 hits, top-5 hits, samples] in float64, to which batches are added."""
    return torch.zeros(4, dtype=torch.float64)


def batch_totals(logits: Tensor, labels: Tensor, num_valid: int, loss_kind: str = "CELoss") -> Tensor:
    """Totals of a padded batch: logits [B, K], labels [B], of which the first `num_valid` rows count.

    The loss is the one trained with, but without label smoothing.
    """
    logits, labels = logits[:num_valid].float(), labels[:num_valid]
    loss = num_valid * classification_loss(logits, labels.unsqueeze(1), loss_kind) if num_valid else torch.zeros(())
    ranking = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    hits = ranking == labels.unsqueeze(1)
    sums = [float(loss), float(hits[:, :1].sum()), float(hits.sum()), float(num_valid)]
    return torch.tensor(sums, dtype=torch.float64)


def result_of(totals: Tensor) -> EvalResult:
    loss, top1, top5, count = totals.tolist()
    return EvalResult(loss / count, top1 / count, top5 / count, int(count))
