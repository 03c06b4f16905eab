"""Losses over packed targets, against torch and by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.losses import classification_loss, count_correct, pack_targets

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 4, 2, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    loss = classification_loss(LOGITS, pack_targets(LABELS, 4), "CELoss", smoothing)
    torch.testing.assert_close(loss, F.cross_entropy(LOGITS, LABELS, label_smoothing=smoothing))


def test_mixup_packs_each_label_with_its_predecessor_in_the_micro_batch() -> None:
    packed = pack_targets(LABELS, 2, torch.full((4,), 0.25))
    assert packed.tolist() == [[0, 4, 0.25], [4, 0, 0.25], [2, 2, 0.25], [2, 2, 0.25]]


def test_mixup_loss_is_the_weighted_sum_of_both_labels_losses() -> None:
    loss = classification_loss(LOGITS, pack_targets(LABELS, 4, torch.full((4,), 0.3)))
    expected = 0.3 * F.cross_entropy(LOGITS, LABELS) + 0.7 * F.cross_entropy(LOGITS, LABELS.roll(1))
    torch.testing.assert_close(loss, expected)


def test_sigmoid_loss_sums_over_classes() -> None:
    loss = classification_loss(LOGITS, pack_targets(LABELS, 4), "SigmoidCELoss")
    wanted = torch.eye(5)[LABELS]
    by_hand = -(wanted * LOGITS.sigmoid().log() + (1 - wanted) * (1 - LOGITS.sigmoid()).log()).sum() / 4
    torch.testing.assert_close(loss, by_hand)


def test_half_precision_logits_have_their_loss_in_float32() -> None:
    assert classification_loss(LOGITS.bfloat16(), pack_targets(LABELS, 4)).dtype == torch.float32


def test_right_answers_count_by_their_mixup_weight() -> None:
    logits = torch.eye(5)[torch.tensor([0, 0, 1, 2])]
    assert float(count_correct(logits, pack_targets(LABELS, 4))) == 2
    # predecessors are 2, 0, 4, 2: sample 0 hits its label, 1 its partner's, 3 both
    assert float(count_correct(logits, pack_targets(LABELS, 4, torch.full((4,), 0.3)))) == pytest.approx(
        0.3 + 0.7 + 1.0
    )


SEVERAL = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.uint8)


def test_the_loss_of_several_labels_is_the_sum_of_their_binary_cross_entropies() -> None:
    loss = classification_loss(LOGITS, pack_targets(SEVERAL, 2), "SigmoidCELoss")
    expected = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL.float(), reduction="sum") / 4
    torch.testing.assert_close(loss, expected)
    smoothed = classification_loss(LOGITS, pack_targets(SEVERAL, 2), "SigmoidCELoss", label_smoothing=0.2)
    wanted = SEVERAL.float() * 0.8 + 0.1
    torch.testing.assert_close(smoothed, F.binary_cross_entropy_with_logits(LOGITS, wanted, reduction="sum") / 4)


def test_several_labels_are_mixed_with_the_predecessors_in_the_micro_batch() -> None:
    packed = pack_targets(SEVERAL, 2, torch.tensor([1.0, 0.75, 0.5, 0.5]))
    assert packed.shape == (4, 5, 1)
    assert packed[0, :, 0].tolist() == [1, 0, 1, 0, 0]
    assert packed[1, :, 0].tolist() == [0.25, 0, 0.25, 0, 0]
    assert packed[2, :, 0].tolist() == [0.5, 1, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("num_labels", [1, 3])
def test_one_or_three_labels_are_not_taken_for_packed_classes(num_labels: int) -> None:
    logits, labels = LOGITS[:, :num_labels], SEVERAL[:, :num_labels]
    loss = classification_loss(logits, pack_targets(labels, 4), "SigmoidCELoss")
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum") / 4)


def test_right_labels_count_by_their_share() -> None:
    logits = torch.tensor([[5.0, -5, 5, -5, -5]]).expand(4, 5)
    right = [5 / 5, 3 / 5, 2 / 5, 2 / 5]
    assert float(count_correct(logits, pack_targets(SEVERAL, 4))) == pytest.approx(sum(right))


WEIGHTS = torch.tensor([0.25, 1.0, 3.0, 40.0, 0.1])


@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_of_labels_that_are_there_are_torchs_pos_weight(scale: float, smoothing: float) -> None:
    logits = (scale * LOGITS).requires_grad_()
    loss = classification_loss(logits, pack_targets(SEVERAL, 2), "SigmoidCELoss", smoothing, WEIGHTS)
    wanted = SEVERAL.float() * (1 - smoothing) + 0.5 * smoothing
    other = logits.detach().clone().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(other, wanted, pos_weight=WEIGHTS, reduction="sum") / 4
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_they_hold_with_one_label_an_image_and_mixed_images_too() -> None:
    share = torch.full((4,), 0.3)
    loss = classification_loss(LOGITS, pack_targets(LABELS, 4, share), "SigmoidCELoss", 0.0, WEIGHTS)
    wanted = torch.eye(5)[LABELS]
    parts = [
        F.binary_cross_entropy_with_logits(LOGITS, rows, pos_weight=WEIGHTS, reduction="sum") / 4
        for rows in (wanted, wanted.roll(1, 0))
    ]
    torch.testing.assert_close(loss, 0.3 * parts[0] + 0.7 * parts[1])
