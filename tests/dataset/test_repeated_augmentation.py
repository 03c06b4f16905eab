"""Repeated augmentation (arXiv 1901.09335): which samples an update has how often, and that their copies differ."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from batch import DataShare
from dataset.loader import TrainLoader
from dataset.order import TrainOrder
from dataset.registry import open_source
from tests.small import small_config

LAYOUTS = [
    {"micro_batch_size": 16},
    {"micro_batch_size": 4, "gradient_accumulation": 2, "replication_factor": 2},
    {"micro_batch_size": 2, "gradient_accumulation": 4, "replication_factor": 2, "device_iterations": 2},
]


def updates_of(config, epoch, replicas=None, length=101):
    """[updates, accumulation, replica, micro] sample numbers of an epoch, and the copies of the same shape."""
    replicas = tuple(range(config.replication_factor)) if replicas is None else replicas
    order = TrainOrder(length, config, replicas)
    orders = [order.order(epoch, step) for step in range(order.steps_per_epoch)]
    shape = (-1, config.gradient_accumulation, len(replicas), config.micro_batch_size)
    return [np.concatenate([getattr(one, name) for one in orders]).reshape(shape) for name in ("indices", "copies")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("repeats", [2, 3])
def test_an_update_has_each_of_its_samples_so_often_and_never_side_by_side(tmp_path, layout, repeats):
    config = small_config(tmp_path, **{"gradient_accumulation": 1, **layout}, repeated_augmentation=repeats)
    assert config.global_batch_size == 16
    indices, copies = updates_of(config, epoch=3)
    assert len(indices) == 101 // config.samples_per_step * config.device_iterations  # no fewer updates than without
    seen = Counter()
    for update, copy in zip(indices.reshape(-1, 16), copies.reshape(-1, 16)):
        counts = Counter(update.tolist())
        assert len(counts) == -(-16 // repeats)
        assert sum(counts.values()) == 16 and set(counts.values()) <= {repeats, repeats - 1}
        assert len(set(zip(update.tolist(), copy.tolist()))) == 16  # each copy once
        seen.update(counts.keys())
    assert set(seen.values()) == {1}  # a sample is in one update of an epoch
    neighbours = np.roll(indices, 1, axis=-1)
    assert not (indices == neighbours).any()  # which mixup and CutMix mix


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_is_the_same_for_any_number_of_replicas(tmp_path, layout):
    whole = small_config(tmp_path, micro_batch_size=16, gradient_accumulation=1, repeated_augmentation=3)
    parts = small_config(tmp_path, **{"gradient_accumulation": 1, **layout}, repeated_augmentation=3)
    for ours, theirs in zip(updates_of(parts, 1), updates_of(whole, 1)):
        theirs = theirs[: len(ours)]
        assert np.array_equal(np.sort(ours.reshape(-1, 16)), np.sort(theirs.reshape(-1, 16)))
    own = updates_of(parts, 1, replicas=(0,))[0]
    assert np.array_equal(own, updates_of(parts, 1)[0][:, :, :1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_copies_of_a_picture_are_changed_each_in_its_own_way_whoever_reads_them(tmp_path, workers):
    from tests.dataset.files import write_images

    write_images(tmp_path / "set" / "train", {"a": 6, "b": 6}, size=(24, 20))
    keys = {"dataset": "folder", "dataset_path": str(tmp_path / "set"), "num_labels": 2, "train_crop_scale": [0.2, 0.6]}
    layout = {"micro_batch_size": 12, "gradient_accumulation": 1, "repeated_augmentation": 3}
    config = small_config(tmp_path, **keys, **layout, dataloader_workers=workers)
    source = open_source(config, "train")
    batch = next(TrainLoader(source, config, DataShare((0,), images=True, targets=True)).epoch(0))
    order = TrainOrder(12, config, (0,)).order(0, 0)
    assert batch.targets.tolist() == source.labels[order.indices].tolist()
    for index in set(order.indices.tolist()):
        rows = np.flatnonzero(order.indices == index).tolist()
        assert len(rows) == 3
        for one, other in zip(rows, rows[1:]):
            assert (batch.images[one].float() - batch.images[other].float()).abs().mean() > 5
    first = next(TrainLoader(source, small_config(tmp_path, **keys, **layout), DataShare((0,), True, True)).epoch(0))
    assert torch.equal(batch.images, first.images)
