"""Which samples a training host batch holds, in which order, and what that must not depend on."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from batch import DataShare
from dataset.loader import TrainLoader
from errors import UserError
from seeding import derive_seed
from tests.dataset.numbered import Numbered, numbers
from tests.small import small_config

WHOLE = DataShare((0,))
STEP = {
    "micro_batch_size": 3,
    "gradient_accumulation": 2,
    "replication_factor": 2,
    "device_iterations": 2,
}  # 24 samples


def test_an_epoch_has_every_sample_at_most_once_and_leaves_out_only_the_tail(tmp_path):
    loader = TrainLoader(Numbered(101), small_config(tmp_path), WHOLE)  # 8 samples a step
    seen = [number for batch in loader.epoch(0) for number in numbers(batch.images)]
    assert len(seen) == len(set(seen)) == 96
    assert (loader.steps_per_epoch, loader.dropped) == (12, 5)
    assert [batch.step for batch in loader.epoch(3)] == list(range(12))


def test_targets_belong_to_the_images_beside_them(tmp_path):
    batch = next(TrainLoader(Numbered(40), small_config(tmp_path), WHOLE).epoch(2))
    assert batch.targets.dtype == torch.int64
    assert batch.targets.tolist() == numbers(batch.images)


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path):
    def order(epoch, seed=42):
        loader = TrainLoader(Numbered(64), small_config(tmp_path, random_seed=seed), DataShare((0,), images=False))
        return [label for batch in loader.epoch(epoch) for label in batch.targets.tolist()]

    assert order(0) == order(0)
    orders = [order(0), order(1), order(2), order(0, seed=43)]
    assert all(sorted(one) == list(range(64)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4


def test_a_host_step_is_laid_out_as_device_iteration_accumulation_replica_micro(tmp_path):
    config = small_config(tmp_path, **STEP)
    permutation = np.random.default_rng(derive_seed(42, "order", 5)).permutation(50).tolist()
    second_step = permutation[24:48]
    batches = {
        replicas: list(TrainLoader(Numbered(50), config, DataShare(replicas)).epoch(5))[1]
        for replicas in [(0,), (1,), (0, 1)]
    }
    # By hand: of each run of 2 replicas x 3 samples, replica 0 has the first three, replica 1 the last three.
    rows = [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert numbers(batches[(0,)].images) == [second_step[row] for row in rows]
    assert numbers(batches[(1,)].images) == [second_step[row + 3] for row in rows]
    assert numbers(batches[(0, 1)].images) == second_step
    assert batches[(1,)].targets.tolist() == [second_step[row + 3] for row in rows]


@pytest.mark.parametrize("split", [[(0, 1, 2, 3)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)], [(1, 2, 3), (0,)]])
def test_any_split_into_shares_covers_the_same_host_batch(tmp_path, split):
    config = small_config(tmp_path, dataset="digits", num_channels=1, num_labels=10, replication_factor=4, rotation=20)
    whole = first_pixels(config, (0, 1, 2, 3))
    for replicas in split:
        assert torch.equal(first_pixels(config, replicas), whole[:, list(replicas)])


def first_pixels(config, replicas):
    """[steps x accumulation, replica, micro, ...] of an epoch's start."""
    from dataset.registry import open_source

    batches = islice(TrainLoader(open_source(config, "train"), config, DataShare(replicas)).epoch(1), 3)
    pixels = torch.cat([batch.images for batch in batches])
    return pixels.view(-1, len(replicas), config.micro_batch_size, *pixels.shape[1:])


@pytest.mark.parametrize("start", [0, 1, 7, 11, 12])
def test_a_start_in_mid_epoch_gives_the_remaining_batches_and_reads_nothing_before_them(tmp_path, start):
    config = small_config(tmp_path, mixup=True, alpha=0.5)
    whole = list(TrainLoader(Numbered(100), config, WHOLE).epoch(4))
    source = Numbered(100)
    rest = list(TrainLoader(source, config, WHOLE).epoch(4, start))
    assert [batch.step for batch in rest] == list(range(start, 12))
    for resumed, uninterrupted in zip(rest, whole[start:]):
        assert torch.equal(resumed.images, uninterrupted.images)
        assert torch.equal(resumed.targets, uninterrupted.targets)
        assert torch.equal(resumed.mix, uninterrupted.mix)
        assert torch.equal(resumed.label_weights, uninterrupted.label_weights)
    assert source.read == [number for batch in rest for number in batch.targets.tolist()]


def test_a_share_without_images_reads_none(tmp_path):
    source = Numbered(40)
    batch = next(TrainLoader(source, small_config(tmp_path), DataShare((0,), images=False)).epoch(0))
    assert batch.images is None
    assert source.read == []
    assert len(batch.targets) == 8


def test_a_share_without_targets_has_none(tmp_path):
    batch = next(TrainLoader(Numbered(40), small_config(tmp_path), DataShare((0,), targets=False)).epoch(0))
    assert batch.targets is None
    assert len(batch.images) == 8


def test_too_few_samples_for_a_host_step_is_explained(tmp_path):
    with pytest.raises(UserError) as error:
        TrainLoader(Numbered(23), small_config(tmp_path, **STEP), DataShare((0, 1)))
    for words in (
        "23 images",
        "takes 24",
        "micro_batch_size 3",
        "device_iterations 2",
        "--micro-batch-size 3 --gradient-accumulation 1 --replication-factor 1 --device-iterations 1",
    ):
        assert words in str(error.value)
