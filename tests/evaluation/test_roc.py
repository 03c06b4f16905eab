"""ROC curves against scikit-learn, and against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation.roc import MOST_POINTS, class_result, class_results, mean_auc, sigmoid

GENERATOR = np.random.default_rng(0)


def a_set(count: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    is_positive = GENERATOR.random(count) < 0.3
    is_positive[:2] = True, False
    scores = GENERATOR.normal(size=count) + is_positive
    if kind == "tied":  # as of bfloat16 logits
        scores = scores.round(1)
    return (np.zeros(count) if kind == "equal" else scores), is_positive


@pytest.mark.parametrize("kind", ["distinct", "tied", "equal"])
@pytest.mark.parametrize("count", [2, 3, 50, 1000])
def test_areas_are_scikit_learns_and_the_share_of_pairs_in_the_right_order(count: int, kind: str) -> None:
    scores, is_positive = a_set(count, kind)
    result = class_result(scores, is_positive, "it")
    differences = scores[is_positive][:, None] - scores[~is_positive][None, :]
    pairs = (np.sum(differences > 0) + 0.5 * np.sum(differences == 0)) / differences.size
    assert result.auc == pytest.approx(pairs, abs=1e-12)
    assert result.auc == pytest.approx(roc_auc_score(is_positive, scores), abs=1e-12)
    assert (result.num_positive, result.num_negative) == (is_positive.sum(), (~is_positive).sum())


def test_the_threshold_has_the_largest_sensitivity_and_specificity_together() -> None:
    scores, is_positive = a_set(500, "tied")
    result = class_result(scores, is_positive, "it")
    false_alarms, hits, thresholds = roc_curve(is_positive, scores, drop_intermediate=False)
    best = np.argmax(hits - false_alarms)
    assert result.threshold == pytest.approx(sigmoid(thresholds[best]), abs=1e-12)
    assert (result.sensitivity, result.specificity) == pytest.approx((hits[best], 1 - false_alarms[best]), abs=1e-12)
    above = 1 / (1 + np.exp(-scores)) >= result.threshold - 1e-12
    assert result.sensitivity == pytest.approx(above[is_positive].mean())
    assert result.specificity == pytest.approx(1 - above[~is_positive].mean())


@pytest.mark.parametrize("count", [30, 20_000])
def test_the_curve_is_scikit_learns_in_at_most_two_hundred_points(count: int) -> None:
    scores, is_positive = a_set(count, "distinct")
    curve = np.array(class_result(scores, is_positive, "it").curve)
    x, y, _ = roc_curve(is_positive, scores)
    assert len(curve) <= MOST_POINTS
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    assert (np.diff(curve, axis=0) >= 0).all()
    known = set(zip(x.tolist(), y.tolist()))
    assert known.issuperset(map(tuple, curve.tolist()))
    area = np.sum(np.diff(curve[:, 0]) * (curve[1:, 1] + curve[:-1, 1]) / 2)
    assert area == pytest.approx(roc_auc_score(is_positive, scores), abs=0 if count == 30 else 1e-3, rel=1e-12)


def test_a_class_without_positives_or_negatives_or_with_a_score_that_is_none_has_no_area_and_the_mean_leaves_it_out() -> (
    None
):
    logits = GENERATOR.normal(size=(40, 5))
    labels = (GENERATOR.random((40, 5)) < 0.5).astype(np.uint8)
    labels[:, 1], labels[:, 2] = 0, 1
    logits[7, 3] = np.nan
    classes = class_results(logits, labels, "abcde")
    assert [one.name for one in classes if one.auc is None] == ["b", "c", "d"]
    assert all(one.threshold is None and one.curve == () for one in classes[1:4])
    assert mean_auc(classes) == pytest.approx(
        roc_auc_score(labels[:, [0, 4]], logits[:, [0, 4]], average="macro"), abs=1e-12
    )
    assert mean_auc(classes[1:4]) is None
