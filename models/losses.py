"""Losses over packed targets, always in float32.

Targets travel as one float32 tensor (pipeline schedules take one): [B, 1] holds labels, [B, 3] holds mixup's
(label a, label b, weight of a). Labels below 2^24 are exact in float32.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def pack_targets(labels: Tensor, micro_batch_size: int, mixup_lambda: Optional[float] = None) -> Tensor:
    """Labels [S] -> [S, 1], or with a mixing weight [S, 3], where each sample's partner is its predecessor in the micro-batch."""
    if mixup_lambda is None:
        return labels.float().unsqueeze(1)
    partners = labels.view(-1, micro_batch_size).roll(1, dims=1).flatten()
    weights = torch.full_like(labels, mixup_lambda, dtype=torch.float32)
    return torch.stack([labels.float(), partners.float(), weights], dim=1)


def classification_loss(logits: Tensor, targets: Tensor, kind: str = "CELoss", label_smoothing: float = 0.0) -> Tensor:
    """Mean loss over a micro-batch: logits [B, K], packed targets [B, 1] or [B, 3]. `kind` is CELoss or SigmoidCELoss.

    SigmoidCELoss sums the binary cross entropies of a sample's K labels (as arXiv 2106.07998 trains ImageNet).
    """
    logits = logits.float()
    if targets.shape[1] == 1:
        return _loss(logits, targets[:, 0].long(), kind, label_smoothing).mean()
    loss_a = _loss(logits, targets[:, 0].long(), kind, label_smoothing)
    loss_b = _loss(logits, targets[:, 1].long(), kind, label_smoothing)
    weight = targets[:, 2]
    return (weight * loss_a + (1.0 - weight) * loss_b).mean()


def _loss(logits: Tensor, labels: Tensor, kind: str, label_smoothing: float) -> Tensor:
    """Loss of each sample, [B]."""
    if kind == "CELoss":
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    num_labels = logits.shape[1]
    wanted = F.one_hot(labels, num_labels).to(logits.dtype)
    wanted = wanted * (1.0 - label_smoothing) + label_smoothing / num_labels
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Number of right top-1 answers of a micro-batch, a float32 scalar; under mixup each label counts with its weight."""
    answers = logits.argmax(dim=1)
    right = (answers == targets[:, 0]).float()
    if targets.shape[1] == 1:
        return right.sum()
    weight = targets[:, 2]
    return (weight * right + (1.0 - weight) * (answers == targets[:, 1]).float()).sum()
