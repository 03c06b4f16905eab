"""Losses over packed targets, always in float32.

Targets travel as one float32 tensor (pipeline schedules take one): [B, 1] holds labels, [B, 3] those of mixed images
(label a, label b, weight of a), [B, K, 1] the shares (0 to 1) of K labels of which an image may have several. Labels below 2^24
are exact in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from config import Config
HARD = "HardSigmoidCELoss"


def pack_targets(labels: Tensor, micro_batch_size: int, weights: Optional[Tensor] = None) -> Tensor:
    """Labels [S] or [S, K] packed. With `weights` [S], each label's partner is its predecessor's in the micro-batch."""
    partners = None
    if weights is not None:
        partners = labels.view(-1, micro_batch_size, *labels.shape[1:]).roll(1, dims=1).view(labels.shape).float()
    if labels.dim() == 2:
        shares = labels.float()
        if partners is not None and weights is not None:
            shares = partners + weights.unsqueeze(1) * (shares - partners)
        return shares.unsqueeze(2)
    if partners is None or weights is None:
        return labels.float().unsqueeze(1)
    return torch.stack([labels.float(), partners, weights], dim=1)


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    kind: str = "CELoss",
    label_smoothing: float = 0.0,
    positive_weights: Optional[Tensor] = None,
) -> Tensor:
    """Mean loss over a micro-batch: logits [B, K], packed targets. `kind` is CELoss, SigmoidCELoss or HardSigmoidCELoss.

    SigmoidCELoss sums the binary cross entropies of a sample's K labels (as arXiv 2106.07998 trains ImageNet), in which
    `positive_weights` [K] multiply the terms of labels that are there (torch's `pos_weight`). The hard one counts both labels
    of a mixed image in full, whatever their shares (as DeiT III, arXiv 2204.07118); it is for images of one class each.
    """
    logits = logits.float()
    if targets.dim() == 3:
        wanted = targets[:, :, 0] * (1.0 - label_smoothing) + 0.5 * label_smoothing
        return _binary(logits, wanted, positive_weights).sum(dim=1).mean()
    if targets.shape[1] == 1:
        return _loss(logits, targets[:, 0].long(), kind, label_smoothing, positive_weights).mean()
    if kind == HARD:
        return _hard_loss(logits, targets, label_smoothing)
    loss_a = _loss(logits, targets[:, 0].long(), kind, label_smoothing, positive_weights)
    loss_b = _loss(logits, targets[:, 1].long(), kind, label_smoothing, positive_weights)
    weight = targets[:, 2]
    return (weight * loss_a + (1.0 - weight) * loss_b).mean()


def loss_weights(config: Config, device: Optional[torch.device] = None) -> Optional[Tensor]:
    """The config's `positive_weights` as `classification_loss` takes them, float32 [num_labels]."""
    weights = config.positive_weights
    if weights is None or not config.trains:  # validation is without them, and features have no labels to weight
        return None
    if isinstance(weights, str):  # balanced: a plan alone, without data to count
        weights = 1.0
    values = weights if isinstance(weights, tuple) else (weights,)
    return torch.tensor(values, dtype=torch.float32, device=device).expand(config.num_labels).contiguous()


def _loss(
    logits: Tensor, labels: Tensor, kind: str, label_smoothing: float, positive_weights: Optional[Tensor]
) -> Tensor:
    """Loss of each sample, [B]."""
    if kind == "CELoss":
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    num_labels = logits.shape[1]
    wanted = F.one_hot(labels, num_labels).to(logits.dtype)
    wanted = wanted * (1.0 - label_smoothing) + label_smoothing / num_labels
    return _binary(logits, wanted, positive_weights).sum(dim=1)


def _binary(logits: Tensor, wanted: Tensor, positive_weights: Optional[Tensor]) -> Tensor:
    """Binary cross entropy of each label, [B, K]."""
    if positive_weights is None:
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    # Written out in functions that PopTorch has: what it does with `pos_weight` is not known.
    return (1.0 - wanted) * logits + (1.0 + (positive_weights - 1.0) * wanted) * F.softplus(-logits)


def _hard_loss(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Of mixed images, targets [B, 3]: a label counts in full if any of its image is seen."""
    num_labels, weight = logits.shape[1], targets[:, 2:]
    first, second = (F.one_hot(targets[:, column].long(), num_labels).float() for column in (0, 1))
    wanted = torch.maximum(first * (weight > 0).float(), second * (weight < 1).float())
    wanted = wanted * (1.0 - label_smoothing) + label_smoothing / num_labels
    return _binary(logits, wanted, None).sum(dim=1).mean()


def count_correct(logits: Tensor, targets: Tensor) -> Tensor:
    """Number of right top-1 answers of a micro-batch, a float32 scalar; of mixed images, each label counts with its weight.

    Where images have several labels: the share of them that is right, answered at a probability of one half.
    """
    if targets.dim() == 3:
        shares = targets[:, :, 0]
        return torch.where(logits > 0, shares, 1.0 - shares).mean(dim=1).sum()
    answers = logits.argmax(dim=1)
    right = (answers == targets[:, 0]).float()
    if targets.shape[1] == 1:
        return right.sum()
    weight = targets[:, 2]
    return (weight * right + (1.0 - weight) * (answers == targets[:, 1]).float()).sum()
