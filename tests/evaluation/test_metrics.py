"""Evaluation sums against scikit-learn, with padding and in parts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, hamming_loss, log_loss, top_k_accuracy_score

from errors import UserError
from evaluation.metrics import batch_totals, empty_totals, result_of

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(23, 8)).astype(np.float32)
LABELS = GENERATOR.integers(0, 8, size=23)


@pytest.mark.parametrize("batch_size", [1, 5, 23, 40])
def test_padded_batches_add_up_to_scikit_learns_figures(batch_size: int) -> None:
    totals = empty_totals()
    for start in range(0, 23, batch_size):
        rows = LOGITS[start : start + batch_size]
        labels = LABELS[start : start + batch_size]
        missing = batch_size - len(rows)
        padded = torch.from_numpy(np.concatenate([rows, np.full((missing, 8), 7.0, np.float32)]))
        totals += batch_totals(
            padded, torch.from_numpy(np.concatenate([labels, np.zeros(missing, int)])), torch.arange(len(rows))
        )
    result = result_of(totals)
    probabilities = torch.from_numpy(LOGITS).softmax(1).numpy()
    assert result.num_samples == 23
    assert result.top1 == accuracy_score(LABELS, LOGITS.argmax(1))
    assert result.top5 == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5))
    assert result.loss == pytest.approx(log_loss(LABELS, probabilities, labels=range(8)), rel=1e-5)


def test_top5_of_three_classes_is_always_right() -> None:
    totals = batch_totals(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert result_of(totals).top5 == 1.0


def test_a_batch_of_padding_alone_counts_nothing() -> None:
    assert batch_totals(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.arange(0)).tolist() == [0, 0, 0, 0]


def test_the_loss_is_the_one_that_is_trained_with() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    totals = batch_totals(logits, labels, torch.arange(3), "SigmoidCELoss")
    wanted = torch.eye(3)[labels[:3]]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:3], wanted, reduction="sum")
    assert float(totals[0]) == pytest.approx(float(expected), rel=1e-6)


def test_of_several_labels_each_counts_and_whole_images_do() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    labels = torch.randint(0, 2, (40, 3), dtype=torch.uint8, generator=generator)
    rows = torch.arange(0, 40, 3)
    totals = batch_totals(logits[:20], labels[:20], rows[rows < 20], "SigmoidCELoss")
    totals += batch_totals(logits[20:], labels[20:], rows[rows >= 20] - 20, "SigmoidCELoss")
    result = result_of(totals, multi_label=True)
    answers, truth = (logits[rows] > 0).numpy(), labels[rows].numpy().astype(bool)
    assert result.num_samples == 14
    assert result.top1 == pytest.approx(1 - hamming_loss(truth, answers))
    assert result.top5 == pytest.approx(accuracy_score(truth, answers))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[rows], labels[rows].float(), reduction="sum")
    assert result.loss == pytest.approx(float(expected) / 14, rel=1e-6)


def test_nothing_to_count_is_an_error() -> None:
    with pytest.raises(UserError, match="none of the validation images could be read"):
        result_of(empty_totals())
