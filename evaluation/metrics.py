"""Exact evaluation: sums over every sample once, added up over batches and processes before anything is divided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from evaluation.roc import mean_auc
from models.losses import classification_loss, pack_targets
from reporting.records import ClassResult

TOP_K = 5


class Wrong(NamedTuple):
    """A sample that was answered wrongly; compares by how confident the answer was."""

    probability: float  # of the answer
    sample: int  # its index in the validation set
    label: int  # that it has; with several labels an image, the one that was answered wrongly
    answer: int  # with several labels an image, 1: the label is there, 0: it is not


class Outcome(NamedTuple):
    """What a whole pass has shown besides its sums, the same in every process."""

    confusion: Optional[np.ndarray] = None  # int64 [K, K], rows: labels, columns: answers
    classes: Tuple[ClassResult, ...] = ()
    wrong: Tuple[Wrong, ...] = ()  # the most confident first


NOTHING = Outcome()


@dataclass(frozen=True)
class EvalResult:
    """Means over `num_samples` samples; top5 is top-K where there are fewer than five classes.

    Where images have several labels (`multi_label`), top1 is the share of labels that are right at a probability of one half, and
    top5 the share of images with all labels right.
    """

    loss: float
    top1: float
    top5: float
    num_samples: int
    multi_label: bool = False
    outcome: Outcome = field(default=NOTHING, compare=False)

    @property
    def auc(self) -> Optional[float]:
        """Mean area under the ROC curves of the labels that have one; None with one label an image."""
        return mean_auc(self.outcome.classes)


def empty_totals() -> Tensor:
    """[loss, top-1 hits, top-5 hits, samples] in float64, to which batches are added."""
    return torch.zeros(4, dtype=torch.float64)


def batch_totals(logits: Tensor, labels: Tensor, rows: Tensor, loss_kind: str = "CELoss") -> Tensor:
    """Totals of the `rows` of a batch that count: logits [B, K], labels [B], or [B, K] where images have several.

    The loss is the one trained with, but without label smoothing and `positive_weights`.
    """
    if not len(rows):
        return empty_totals()
    logits, labels = logits[rows].float(), labels[rows]
    loss = len(rows) * classification_loss(logits, pack_targets(labels, 1), loss_kind)
    hits = _labels_right(logits, labels) if labels.dim() == 2 else _ranks_right(logits, labels)
    return torch.tensor([float(loss), *hits, float(len(rows))], dtype=torch.float64)


def _labels_right(logits: Tensor, labels: Tensor) -> Tuple[float, float]:
    right = (logits > 0) == (labels > 0)
    return float(right.double().mean(dim=1).sum()), float(right.all(dim=1).sum())


def _ranks_right(logits: Tensor, labels: Tensor) -> Tuple[float, float]:
    ranking = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
    hits = ranking == labels.unsqueeze(1)
    return float(hits[:, :1].sum()), float(hits.sum())


def result_of(totals: Tensor, multi_label: bool = False, outcome: Outcome = NOTHING) -> EvalResult:
    """Raises UserError where no sample counts."""
    loss, top1, top5, count = totals.tolist()
    if not count:
        raise UserError("none of the validation images could be read.\n       Look at them with verify.py.")
    return EvalResult(loss / count, top1 / count, top5 / count, int(count), multi_label, outcome)
