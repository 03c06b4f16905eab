"""Loader processes change when images are read, and nothing else."""

from __future__ import annotations

import os
import time
from itertools import islice

import pytest
import torch

import machine
from batch import DataShare
from dataset.loader import EvalLoader, TrainLoader
from dataset.reading import plan_chunks
from dataset.registry import open_source
from errors import UserError
from tests.dataset.files import write_images
from tests.dataset.numbered import Numbered
from tests.small import small_config

WHOLE = DataShare((0,))
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # three workers on two cores


@pytest.fixture(autouse=True)
def _cores_for_three_workers(monkeypatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 4)


def eval_loader(source, config, batch_size=4):
    return EvalLoader(source, config, batch_size=batch_size, share_index=0, num_shares=1, images=True, targets=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_images(root, {f"{split}/{name}": 9 for split in ("train", "val") for name in ("ant", "bee")})
    return root


@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_do_not_depend_on_the_number_of_workers(tmp_path, photos, workers):
    keys = {
        "dataset": "folder",
        "dataset_path": str(photos),
        "horizontal_flip": True,
        "rotation": 30,
        "extra_aug": "imagenet_policy",
    }

    def batches(num_workers):
        config = small_config(tmp_path, **keys, dataloader_workers=num_workers)
        train = TrainLoader(open_source(config, "train"), config, WHOLE)
        return [*train.epoch(0), *train.epoch(1), *eval_loader(open_source(config, "validation"), config, batch_size=7)]

    here, elsewhere = batches(0), batches(workers)
    assert len(here) == len(elsewhere) == 2 + 2 + 3
    for first, second in zip(here, elsewhere):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.targets, second.targets)


def test_workers_outlive_epochs_and_follow_jumps(tmp_path):
    config = small_config(tmp_path, dataloader_workers=2, prefetch_batches=3)
    with_workers = TrainLoader(Numbered(100), config, WHOLE)
    children = []
    for epoch, start, length in [(0, 0, 12), (1, 0, 12), (2, 0, 3), (0, 5, 2), (7, 11, 1), (8, 0, 12)]:
        fresh = TrainLoader(Numbered(100), small_config(tmp_path), WHOLE)
        expected = [batch.images for batch in islice(fresh.epoch(epoch, start), length)]
        found = [batch.images for batch in islice(with_workers.epoch(epoch, start), length)]
        assert torch.equal(torch.cat(found), torch.cat(expected))
        children.append(own_children())
    assert children[0]
    assert all(later == children[0] for later in children)


def test_workers_end_with_their_loader(tmp_path):
    before = own_children()
    loader = TrainLoader(Numbered(100), small_config(tmp_path, dataloader_workers=2), WHOLE)
    next(loader.epoch(0))
    assert len(own_children() - before) == 2
    begun = time.monotonic()
    del loader
    assert own_children() == before
    assert time.monotonic() - begun < 3


def test_a_worker_has_one_thread_and_a_process_group_of_its_own(tmp_path):
    config = small_config(tmp_path, dataloader_workers=1)
    image = next(TrainLoader(Introspective(40), config, WHOLE).epoch(0)).images[0, 0, 0].tolist()
    assert image[:2] == [1, 1]


class Introspective(Numbered):
    """Images tell of the process that made them: its threads, and whether it leads its process group."""

    def item(self, index):
        image = super().item(index)
        image[0, 0, 0], image[0, 0, 1] = torch.get_num_threads(), os.getpgid(0) == os.getpid()
        return image


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_the_users_error_word_for_word(tmp_path, photos, workers):
    write_images(tmp_path, {"train/ant": 9, "train/bee": 9})
    broken = tmp_path / "train/bee/2.png"
    broken.write_bytes(b"GIF89a of sorts")
    config = small_config(tmp_path, dataset="folder", dataset_path=str(tmp_path), dataloader_workers=workers)
    before = own_children()
    loader = TrainLoader(open_source(config, "train"), config, WHOLE)
    with pytest.raises(UserError) as error:
        for epoch in range(3):
            list(loader.epoch(epoch))
    assert own_children() == before
    assert str(error.value).startswith(f"cannot read image {broken}: not an image")
    assert "worker" not in str(error.value)


def test_loading_leaves_the_default_generator_as_it_was(tmp_path, photos):
    for workers in (0, 1):
        config = small_config(
            tmp_path,
            dataset="folder",
            dataset_path=str(photos),
            extra_aug="imagenet_policy",
            dataloader_workers=workers,
        )
        before = torch.get_rng_state()
        list(TrainLoader(open_source(config, "train"), config, WHOLE).epoch(0))
        assert torch.equal(torch.get_rng_state(), before)


def test_sources_cheaper_than_a_hand_over_get_no_workers(tmp_path):
    config = small_config(tmp_path, dataloader_workers=2)
    before = own_children()
    loader = TrainLoader(open_source(config, "train"), config, WHOLE)
    next(loader.epoch(0))
    assert own_children() == before


def test_no_more_workers_than_cores_are_started(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "num_cores", lambda: 1)
    before = own_children()
    loader = TrainLoader(Numbered(100), small_config(tmp_path, dataloader_workers=64), WHOLE)
    next(loader.epoch(0))
    assert len(own_children() - before) == 1


@pytest.mark.parametrize(
    ("workers", "batch_size", "free_bytes", "rows", "ahead"),
    [
        (4, 64, 1e12, 16, 2),  # a batch is shared by all workers, two are kept ready
        (4, 8704, 1e12, 64, 64),  # no more than 256 chunks in flight
        (4, 8704, 64 << 20, 13, 2),  # a container's 64 MB: 16 MB of images, two chunks a worker
        (2, 1, 1e12, 1, 1),
        (8, 64, 0.0, 1, 1),  # never nothing
    ],
)
def test_chunks_share_a_batch_and_fit_into_shared_memory(workers, batch_size, free_bytes, rows, ahead):
    sizes = plan_chunks(workers, batch_size, 3 * 224 * 224, 2, free_bytes)
    assert (sizes.rows, sizes.ahead) == (rows, ahead)


def own_children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())
