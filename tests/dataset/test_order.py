"""The order of training samples: every one once an epoch, however the work is split and by however many loader processes."""

from __future__ import annotations

import os
from itertools import islice

import numpy as np
import pytest
import torch

import machine
from batch import DataShare
from dataset.loader import TrainLoader
from dataset.order import TrainOrder
from tests.dataset.numbered import Numbered, numbers
from tests.small import small_config

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on two cores

LENGTHS = [53, 97, 101]
LAYOUTS = {
    8: {"micro_batch_size": 2, "gradient_accumulation": 2, "replication_factor": 2},
    12: {"micro_batch_size": 1, "gradient_accumulation": 2, "replication_factor": 3, "device_iterations": 2},
    16: {"micro_batch_size": 2, "gradient_accumulation": 1, "replication_factor": 4, "device_iterations": 2},
}
# The same 24 samples a weight update, two updates a host step.
SAME_UPDATE = [
    {"micro_batch_size": 6, "gradient_accumulation": 4, "replication_factor": 1, "device_iterations": 2},
    {"micro_batch_size": 6, "gradient_accumulation": 2, "replication_factor": 2, "device_iterations": 2},
    {"micro_batch_size": 2, "gradient_accumulation": 3, "replication_factor": 4, "device_iterations": 2},
    {"micro_batch_size": 1, "gradient_accumulation": 6, "replication_factor": 4, "device_iterations": 2},
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("samples_per_step", LAYOUTS)
def test_the_replicas_together_see_every_sample_once_but_those_dropped(tmp_path, length, samples_per_step):
    config = small_config(tmp_path, **LAYOUTS[samples_per_step])
    assert config.samples_per_step == samples_per_step
    orders = [TrainOrder(length, config, (replica,)) for replica in range(config.replication_factor)]
    assert orders[0].steps_per_epoch == length // samples_per_step
    left_out = []
    for epoch in range(25):
        seen = [
            i for order in orders for step in range(order.steps_per_epoch) for i in order.step(epoch, step).tolist()
        ]
        missing = set(range(length)) - set(seen)
        assert len(seen) == len(set(seen))
        assert len(seen) + orders[0].dropped == length
        assert len(missing) == orders[0].dropped
        left_out.append(missing)
    assert set.intersection(*left_out) == set()  # others each time


@pytest.mark.parametrize("layout", SAME_UPDATE)
def test_a_weight_update_has_the_same_samples_for_any_number_of_replicas(tmp_path, layout):
    def updates(keys):
        """[update of the epoch, its samples in ascending order], of all replicas together."""
        config = small_config(tmp_path, **keys)
        orders = [TrainOrder(101, config, (replica,)) for replica in range(config.replication_factor)]
        steps = range(orders[0].steps_per_epoch)
        per_replica = [np.concatenate([order.step(3, step) for step in steps]).reshape(4, -1) for order in orders]
        return np.sort(np.concatenate(per_replica, axis=1), axis=1)

    expected = TrainOrder(101, small_config(tmp_path, micro_batch_size=24, gradient_accumulation=1), (0,))
    assert updates(layout).shape == (4, 24)
    for update, samples in enumerate(updates(layout)):
        assert samples.tolist() == sorted(expected.step(3, update).tolist())


def images_and_targets(source, config, share, epochs=(0, 1), start=0):
    loader = TrainLoader(source, config, share)
    return [(batch.step, batch.images, batch.targets) for epoch in epochs for batch in loader.epoch(epoch, start)]


@pytest.mark.parametrize("replicas", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_no_batch_of_any_replica(tmp_path, monkeypatch, workers, replicas):
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    layout = {**LAYOUTS[8], "micro_batch_size": 3}
    here = images_and_targets(Numbered(53), small_config(tmp_path, **layout), DataShare(replicas))
    config = small_config(tmp_path, **layout, dataloader_workers=workers)
    elsewhere = images_and_targets(Numbered(53), config, DataShare(replicas))
    order = TrainOrder(53, config, replicas)
    assert len(here) == len(elsewhere) == 2 * 4
    for position, (expected, found) in enumerate(zip(here, elsewhere)):
        assert expected[0] == found[0] == position % 4
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2], expected[2])
        assert numbers(found[1]) == found[2].tolist() == order.step(position // 4, position % 4).tolist()


class Logged(Numbered):
    """Tells in a file what is read of it, in whichever process."""

    def __init__(self, num_samples, path):
        super().__init__(num_samples)
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def item(self, index):
        os.write(self._log, f"{index}\n".encode())
        return super().item(index)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("replicas", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("start", [0, 1, 9])
def test_a_start_in_mid_epoch_goes_on_with_the_very_next_sample(tmp_path, monkeypatch, workers, replicas, start):
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    config = small_config(tmp_path, **LAYOUTS[8], dataloader_workers=workers, prefetch_batches=1)
    source = Logged(101, tmp_path / f"log of {len(os.listdir(tmp_path))}")
    batches = list(islice(TrainLoader(source, config, DataShare(replicas)).epoch(2, start), 2))
    order = TrainOrder(101, config, replicas)
    expected = [index for step in (start, start + 1) for index in order.step(2, step).tolist()]
    assert [index for batch in batches for index in numbers(batch.images)] == expected
    assert [batch.step for batch in batches] == [start, start + 1]
    logs = [path for path in tmp_path.iterdir() if path.name.startswith("log")]
    read = [int(line) for log in logs for line in log.read_text().split()]
    earlier = {index for step in range(start) for index in order.step(2, step).tolist()}
    assert not earlier & set(read)
    if workers < 2:  # several read at once
        assert read[: len(expected)] == expected
    else:
        assert set(expected) <= set(read)


def test_the_order_goes_on_into_the_next_epochs(tmp_path):
    order = TrainOrder(53, small_config(tmp_path, **LAYOUTS[12]), (0, 2))  # 4 steps an epoch
    found = list(islice(order.following(5, 2), 7))
    wanted = [(5, 2), (5, 3), (6, 0), (6, 1), (6, 2), (6, 3), (7, 0)]
    assert [one.epoch for one in found] == [epoch for epoch, _ in wanted]
    fresh = TrainOrder(53, small_config(tmp_path, **LAYOUTS[12]), (0, 2))
    for one, (epoch, step) in reversed(list(zip(found, wanted))):
        assert one.indices.tolist() == fresh.step(epoch, step).tolist()
