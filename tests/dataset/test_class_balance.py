"""What rare classes cost and how often they come: counted from the labels, against scikit-learn where it counts too."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from batch import DataShare
from dataset.class_balance import balance_notes, undefined_auc_notes, with_positive_weights
from dataset.loader import TrainLoader
from dataset.order import TrainOrder
from dataset.registry import open_source
from errors import UserError
from tests.dataset.files import write_images
from tests.small import small_config

GENERATOR = np.random.default_rng(0)
SINGLE = GENERATOR.choice(5, size=200, p=[0.6, 0.3, 0.05, 0.03, 0.02])
SEVERAL = (GENERATOR.random((200, 5)) < [0.5, 0.2, 0.1, 0.02, 0.0]).astype(np.uint8)


def source_of(labels: np.ndarray) -> Any:
    return SimpleNamespace(labels=labels, num_classes=5, class_names=("a", "b", "c", "d", "e"))


@pytest.mark.parametrize("labels", [SINGLE, SEVERAL], ids=["one label", "several"])
def test_balanced_weights_are_negatives_over_positives(tmp_path: Any, labels: np.ndarray) -> None:
    config = small_config(tmp_path, loss="SigmoidCELoss", positive_weights="balanced", dataset="csv")
    found = with_positive_weights(config, source_of(labels)).positive_weights
    one_hot = np.eye(5)[labels] if labels.ndim == 1 else labels
    for label, weight in enumerate(found):
        column = one_hot[:, label]
        if not column.any():
            assert weight == 1.0
            continue
        of_negatives, of_positives = compute_class_weight("balanced", classes=np.array([0, 1]), y=column)
        assert weight == pytest.approx(of_positives / of_negatives)


def test_given_numbers_stay(tmp_path: Any) -> None:
    config = small_config(tmp_path, loss="SigmoidCELoss", positive_weights=[1, 2, 3, 4, 5])
    assert with_positive_weights(config, source_of(SEVERAL)).positive_weights == (1, 2, 3, 4, 5)


def epoch_of(order: TrainOrder, epoch: int) -> np.ndarray:
    return np.concatenate([order.step(epoch, step) for step in range(order.steps_per_epoch)])


def test_every_class_comes_equally_often_and_goes_through_its_images_before_one_repeats(tmp_path: Any) -> None:
    order = TrainOrder(200, small_config(tmp_path, balanced_sampling=True), (0,), SINGLE)
    for epoch in range(3):
        drawn = epoch_of(order, epoch)
        assert np.bincount(SINGLE[drawn]).tolist() == [40] * 5
        for label in range(5):
            times = np.bincount(drawn, minlength=200)[label == SINGLE]
            assert times.max() - times.min() <= 1
    assert not np.array_equal(epoch_of(order, 0), epoch_of(order, 1))


def test_with_several_labels_each_label_and_having_none_is_a_class(tmp_path: Any) -> None:
    order = TrainOrder(200, small_config(tmp_path, balanced_sampling=True), (0,), SEVERAL)
    drawn = epoch_of(order, 0)
    assert len(drawn) == 200
    share = SEVERAL[drawn].mean(axis=0)
    assert (share[:4] >= 1 / 5).all()  # four labels that there are, and none; an image brings its other labels along
    assert (~SEVERAL[drawn].any(axis=1)).sum() == 40


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("labels", [SINGLE, SEVERAL], ids=["single", "several"])
def test_a_sample_that_is_drawn_again_in_an_epoch_is_another_copy(
    tmp_path: Any, times: int, labels: np.ndarray
) -> None:
    keys = {"balanced_sampling": True, "gradient_accumulation": 2, "replication_factor": 2}
    config = small_config(tmp_path, **keys, repeated_augmentation=times)
    order = TrainOrder(200, config, (0, 1), labels)
    orders = [order.order(1, step) for step in range(order.steps_per_epoch)]
    drawn = [pair for one in orders for pair in zip(one.indices.tolist(), one.copies.tolist())]
    assert len(set(drawn)) == len(drawn) > len({index for index, _ in drawn})
    alone = TrainOrder(200, config, (1,), labels).order(1, 7)  # epoch 1 alone, as after resuming
    wanted = orders[7].copies.reshape(-1, 2, config.micro_batch_size)[:, 1].flatten()
    assert alone.copies.tolist() == wanted.tolist()


def test_copies_of_drawn_samples_are_changed_each_in_its_own_way(tmp_path: Any) -> None:
    write_images(tmp_path / "set" / "train", {"a": 2, "b": 22}, size=(24, 20))
    data = {"dataset": "folder", "dataset_path": str(tmp_path / "set"), "num_labels": 2, "train_crop_scale": [0.2, 0.6]}
    layout = {"micro_batch_size": 24, "gradient_accumulation": 1, "balanced_sampling": True}
    config = small_config(tmp_path, **data, **layout)
    source = open_source(config, "train")
    batch = next(TrainLoader(source, config, DataShare((0,), images=True, targets=True)).epoch(0))
    indices = TrainOrder(24, config, (0,), source.labels).step(0, 0)
    rows = np.flatnonzero(indices == 0).tolist()
    assert len(rows) == 6
    for one, other in combinations(rows, 2):
        assert (batch.images[one].float() - batch.images[other].float()).abs().mean() > 5


def test_the_order_is_a_function_of_seed_and_epoch_and_the_same_for_all_replicas_together(tmp_path: Any) -> None:
    keys = {"balanced_sampling": True, "gradient_accumulation": 2, "replication_factor": 2}
    whole = TrainOrder(200, small_config(tmp_path, **keys), (0, 1), SINGLE)
    parts = [TrainOrder(200, small_config(tmp_path, **keys), (replica,), SINGLE) for replica in (0, 1)]
    assert parts[1].step(3, 7).tolist() == whole.step(3, 7).reshape(2, 2, 2)[:, 1].flatten().tolist()  # epoch 3 alone
    together = np.concatenate([part.step(3, 7) for part in parts])
    assert sorted(together) == sorted(whole.step(3, 7))
    other = TrainOrder(200, small_config(tmp_path, **keys, random_seed=1), (0, 1), SINGLE)
    assert epoch_of(other, 0).tolist() != epoch_of(whole, 0).tolist()


def test_what_cannot_be_learned_or_scored_is_said_and_a_single_class_is_refused(tmp_path: Any) -> None:
    config = small_config(tmp_path, loss="SigmoidCELoss", dataset="csv", balanced_sampling=True)
    some = np.ones((4, 5), dtype=np.uint8)
    some[:, 1] = 0
    assert balance_notes(config, source_of(SEVERAL), source_of(some)) == [
        "balanced_sampling: an epoch makes 200 draws, of each of 5 classes equally many",
        "labels that no training image has, and that cannot be learned: e",
        "the mean AUC leaves out labels that no validation image has: b",
        "the mean AUC leaves out labels that every validation image has: a, c, d, e",
    ]
    assert undefined_auc_notes(source_of(SINGLE)) == []
    with pytest.raises(UserError, match="nothing to balance"):
        balance_notes(config, source_of(np.zeros(9, dtype=np.int64)), None)
