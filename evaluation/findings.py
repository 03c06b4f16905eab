"""What a validation pass shows beyond its sums: confusions, ROC curves and the most confident mistakes.

Each process gathers what it sees in a `Gathered`; `over_all` brings it together, so that every process has the same.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from dataset.base import sample_name
from dataset.pictures import picture_of
from evaluation.metrics import Outcome, Wrong
from evaluation.roc import class_results
from reporting.records import Findings, Mistake

if TYPE_CHECKING:
    from batch import EvalBatch
    from dataset.loader import EvalLoader
    from runtime.base import Runtime

MOST_MISTAKES = 12
MOST_CONFUSED = 1000  # classes; a table of more is too large to be looked at, and 8 MB to be summed over processes
MOST_SCORES = 2**26  # of all samples and labels: 512 MiB in every process


class Gathered:
    """What one process has seen of a pass over images with one label each, of `num_classes`."""

    def __init__(self, num_classes: int, loss_kind: str) -> None:
        self._is_softmax = loss_kind == "CELoss"
        is_small = num_classes <= MOST_CONFUSED
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64) if is_small else None
        self._wrong: List[Wrong] = []

    def add(self, batch: EvalBatch, logits: Tensor) -> None:
        assert batch.targets is not None
        labels, logits = batch.targets[batch.rows], logits[batch.rows].double()
        probabilities, answers = (logits.softmax(1) if self._is_softmax else logits.sigmoid()).max(dim=1)
        if self._confusion is not None:
            self._confusion.index_put_((labels, answers), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
        missed = torch.nonzero((answers != labels) & ~probabilities.isnan())[:, 0]
        columns = (probabilities[missed], batch.indices[batch.rows][missed], labels[missed], answers[missed])
        found = [Wrong(*row) for row in zip(*(column.tolist() for column in columns))]
        self._wrong = most_confident(self._wrong + found)

    def over_all(self, runtime: Runtime) -> Outcome:
        confusion = None
        if self._confusion is not None:
            confusion = runtime.sum_totals(self._confusion).numpy().round().astype(np.int64)
        wrong = [one for part in runtime.gather(self._wrong) for one in part]
        return Outcome(confusion=confusion, wrong=tuple(most_confident(wrong)))


class GatheredScores:
    """The same where images have several labels: every score, each process filling the rows of its own samples."""

    def __init__(self, labels: np.ndarray, names: Sequence[str]) -> None:
        """labels: uint8 [N, K], of the whole set."""
        self._labels, self._names = labels, names
        rows, columns = labels.shape
        # Logits rather than probabilities, which are 1 for many. The last column says whose image was read.
        self._scores = torch.zeros(rows, columns + 1, dtype=torch.float64)

    def add(self, batch: EvalBatch, logits: Tensor) -> None:
        indices = batch.indices[batch.rows]
        self._scores[indices, :-1] = logits[batch.rows].double()
        self._scores[indices, -1] = 1.0

    def over_all(self, runtime: Runtime) -> Outcome:
        scores = runtime.sum_totals(self._scores).numpy()
        seen = np.flatnonzero(scores[:, -1])
        logits, labels = scores[seen, :-1], self._labels[seen]
        return Outcome(
            classes=class_results(logits, labels, self._names), wrong=tuple(_wrong_labels(logits, labels, seen))
        )


def gather_for(loader: EvalLoader, loss_kind: str) -> Optional[Union[Gathered, GatheredScores]]:
    """None where there are more scores than memory is meant for."""
    if not loader.multi_label:
        return Gathered(loader.num_labels, loss_kind)
    labels = loader.source.labels
    return GatheredScores(labels, class_names(loader)) if labels.size <= MOST_SCORES else None


def most_confident(wrong: List[Wrong]) -> List[Wrong]:
    """The first of equally confident ones is that with the lower index."""
    return heapq.nsmallest(MOST_MISTAKES, wrong, key=lambda one: (-one.probability, one.sample))


def _wrong_labels(logits: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> List[Wrong]:
    """Of each image the label that is wrong with most confidence."""
    is_wrong = (logits > 0) != (labels > 0)
    confidence = np.where(is_wrong & ~np.isnan(logits), np.abs(logits), -1.0)
    columns = confidence.argmax(axis=1)
    best = confidence[np.arange(len(columns)), columns]
    rows = np.argsort(-best, kind="stable")[:MOST_MISTAKES]
    return [
        Wrong(float(1.0 / (1.0 + np.exp(-best[row]))), int(indices[row]), int(columns[row]), int(logits[row, columns[row]] > 0))
        for row in rows.tolist()
        if best[row] >= 0
    ]  # fmt: skip


def class_names(loader: EvalLoader) -> Tuple[str, ...]:
    """Of all labels of the model's head; numbers where the data does not name them."""
    known = loader.source.class_names
    return (*known, *(f"class {label}" for label in range(len(known), loader.num_labels)))


def findings_of(outcome: Outcome, loader: EvalLoader, step: int, averaged: bool = False) -> Findings:
    """With names and pictures of the mistakes. For the main process: it reads images."""
    names = class_names(loader)
    return Findings(
        step=step,
        averaged=averaged,
        confusion=outcome.confusion,
        classes=outcome.classes,
        mistakes=tuple(_mistake(one, loader, names) for one in outcome.wrong),
    )


def _mistake(wrong: Wrong, loader: EvalLoader, names: Sequence[str]) -> Mistake:
    wanted, answered = names[wrong.label], names[wrong.answer] if not loader.multi_label else ""
    if loader.multi_label:
        words = (f"no {wanted}", wanted)
        wanted, answered = words[1 - wrong.answer], words[wrong.answer]
    return Mistake(
        index=wrong.sample,
        name=sample_name(loader.source, wrong.sample),
        wanted=wanted,
        answered=answered,
        probability=wrong.probability,
        picture=picture_of(loader.source, loader.config, wrong.sample),
    )
