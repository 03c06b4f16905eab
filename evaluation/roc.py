"""ROC curves: how well a score tells the samples that have a label from those that do not. Pure numpy, in float64."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np

from reporting.records import ClassResult

MOST_POINTS = 200  # of a curve that is reported


def class_results(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Tuple[ClassResult, ...]:
    """What is known of each of K labels: logits float64 [N, K], labels [N, K] of 0 and 1, K names."""
    return tuple(class_result(logits[:, k], labels[:, k] > 0, name) for k, name in enumerate(names))


def mean_auc(classes: Sequence[ClassResult]) -> Optional[float]:
    """Over the classes that have one (scikit-learn's `average="macro"`); None where none has."""
    areas: List[float] = [one.auc for one in classes if one.auc is not None]
    return float(np.mean(areas)) if areas else None


def class_result(scores: np.ndarray, is_positive: np.ndarray, name: str) -> ClassResult:
    """Scores are logits float64 [N]. Without a curve where a class has no positive or no negative, or a score is NaN."""
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if not positives or not negatives or np.isnan(scores).any():
        return ClassResult(name, positives, negatives)
    thresholds, hits, false_alarms = counts_above(scores, is_positive)
    at = int(np.argmax(hits / positives - false_alarms / negatives))  # Youden's J; of equal ones the highest threshold
    return ClassResult(
        name,
        positives,
        negatives,
        auc=area(hits, false_alarms),
        threshold=sigmoid(float(thresholds[at])),
        sensitivity=float(hits[at] / positives),
        specificity=float(1.0 - false_alarms[at] / negatives),
        curve=curve(hits, false_alarms),
    )


def counts_above(scores: np.ndarray, is_positive: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores, falling, and how many positives and negatives have each or more."""
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(is_positive[order])
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # of each run of equal scores
    return ordered[last], found[last], last + 1 - found[last]


def area(hits: np.ndarray, false_alarms: np.ndarray) -> float:
    """Under the curve, in whole numbers until the end: the share of pairs of a positive and a negative in which the positive
    has the larger score, a tie being half a pair.
    """
    heights = np.append(0, hits)
    doubled = np.sum(np.diff(np.append(0, false_alarms)) * (heights[1:] + heights[:-1]))
    return float(doubled) / (2.0 * float(hits[-1]) * float(false_alarms[-1]))


def curve(hits: np.ndarray, false_alarms: np.ndarray) -> Tuple[Tuple[float, float], ...]:
    """(1 - specificity, sensitivity) from (0, 0) to (1, 1): the corners, and of many a choice at even distances along it."""
    right, up = np.diff(np.append(0, false_alarms)), np.diff(np.append(0, hits))
    is_corner = right[1:] * up[:-1] != right[:-1] * up[1:]
    kept = np.concatenate([[0], 1 + np.flatnonzero(is_corner), [len(hits)]])
    x, y = np.append(0, false_alarms)[kept] / false_alarms[-1], np.append(0, hits)[kept] / hits[-1]
    if len(kept) > MOST_POINTS:
        chosen = np.unique(np.searchsorted(x + y, np.linspace(0.0, 2.0, MOST_POINTS)))
        x, y = x[chosen], y[chosen]
    return tuple(zip(x.tolist(), y.tolist()))


def sigmoid(logit: float) -> float:
    return float(1.0 / (1.0 + np.exp(-logit))) if logit >= 0 else float(np.exp(logit) / (1.0 + np.exp(logit)))
