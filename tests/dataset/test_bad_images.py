"""Images that cannot be read: each kind is named with its reason, or passed over by the next one, without losing the run."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import machine
from batch import DataShare
from dataset.bad_images import Bad, BadImageLog
from dataset.base import Encoded
from dataset.loader import EvalLoader, TrainLoader
from dataset.registry import open_source
from errors import UserError
from tests.dataset.bad_files import BAD, encoded
from tests.dataset.files import write_images
from tests.small import small_config

WHOLE = DataShare((0,))
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two workers on one core


def photos(tmp_path, kind=None, policy="stop", **keys):
    """A config and its training source: 20 images of two classes, train/bee/3.png changed to one of the bad `kind`."""
    write_images(tmp_path, {"train/ant": 10, "train/bee": 10})
    path = tmp_path / "train" / "bee" / "3.png"
    config = small_config(tmp_path, dataset="folder", dataset_path=str(tmp_path), bad_images=policy, **keys)
    source = open_source(config, "train")
    if kind is not None:
        BAD[kind][0](path)
    return config, source, path


@pytest.mark.parametrize("kind", BAD)
def test_stop_names_the_file_and_the_reason(tmp_path, kind):
    config, source, path = photos(tmp_path, kind, gradient_accumulation=10)
    loader = TrainLoader(source, config, WHOLE)
    with pytest.raises(UserError, match=BAD[kind][1]) as error:
        list(loader.epoch(0))
    assert str(error.value).startswith(f"cannot read image {path}: ")
    assert "--bad-images skip" in str(error.value)


@pytest.mark.parametrize("kind", BAD)
def test_skip_takes_the_next_sample_of_the_epochs_order(tmp_path, kind):
    config, source, path = photos(tmp_path, kind, policy="skip")  # 8 samples a step
    log = BadImageLog()
    log.write_into(tmp_path)
    loader = TrainLoader(source, config, WHOLE, bad_images=log)
    for epoch in range(4):
        expected = [index for step in range(2) for index in loader._order.step(epoch, step).tolist()]
        batches = list(loader.epoch(epoch))
        bad_at = expected.index(13) if 13 in expected else None
        assert sum(batch.num_replaced for batch in batches) == (bad_at is not None)
        if bad_at is not None:
            expected[bad_at] = next(loader._order.after(epoch, bad_at // 8, bad_at % 8))
        labels = torch.cat([batch.targets for batch in batches]).tolist()
        assert labels == source.labels[expected].tolist()
        clean = loader._reader.read_one(epoch, expected[bad_at or 0]).images[0]
        assert torch.equal(torch.cat([batch.images for batch in batches])[bad_at or 0], clean)
    assert (tmp_path / "bad_images.txt").read_text().splitlines() == [f"{path}\t{log.last[len(str(path)) + 2 :]}"]
    assert 1 <= log.count <= 4


def test_the_next_sample_is_the_one_after_it_in_the_permutation(tmp_path):
    from dataset.order import TrainOrder
    from seeding import derive_seed

    config = small_config(tmp_path, replication_factor=2, micro_batch_size=3, gradient_accumulation=2)
    order = np.random.default_rng(derive_seed(42, "order", 1)).permutation(30).tolist()
    of_second_replica = TrainOrder(30, config, (1,))
    assert of_second_replica.step(1, 1).tolist() == [order[row] for row in (15, 16, 17, 21, 22, 23)]
    after = list(of_second_replica.after(1, 1, 2))
    assert after == [*order[18:], *order[:17]]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_what_stands_in(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    config, source, _ = photos(tmp_path, "no bytes", policy="skip", dataloader_workers=workers, horizontal_flip=True)
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"")
    found = [
        (batch.images, batch.targets) for epoch in range(3) for batch in TrainLoader(source, config, WHOLE).epoch(epoch)
    ]
    alone = small_config(
        tmp_path, dataset="folder", dataset_path=str(tmp_path), bad_images="skip", horizontal_flip=True
    )
    expected = [
        (batch.images, batch.targets) for epoch in range(3) for batch in TrainLoader(source, alone, WHOLE).epoch(epoch)
    ]
    assert all(torch.equal(a, b) for first, second in zip(found, expected) for a, b in zip(first, second))


def test_several_bad_images_in_a_row_all_find_one_that_stands_in(tmp_path):
    config, source, _ = photos(tmp_path, policy="skip")
    for number in range(10):
        (tmp_path / "train" / "bee" / f"{number}.png").write_bytes(b"")
    batches = list(TrainLoader(source, config, WHOLE).epoch(0))
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0] * 16
    assert all(batch.images.flatten(1).any(1).all() for batch in batches)


def test_nothing_but_bad_images_is_an_error(tmp_path):
    config, source, _ = photos(tmp_path, policy="skip")
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image .*: the file is empty; nor 19 others"):
        next(TrainLoader(source, config, WHOLE).epoch(0))


def test_a_name_that_is_no_utf_8_is_listed_as_it_is(tmp_path):
    log = BadImageLog()
    log.write_into(tmp_path)
    name = os.fsdecode(b"train/ant/\xff\xfe.png")
    log.add(Bad(0, name, "the file is empty"))
    log.add(Bad(3, name, "the file is empty"))
    assert (tmp_path / "bad_images.txt").read_bytes() == b"train/ant/\xff\xfe.png\tthe file is empty\n"
    log.last.encode()  # can be printed


@pytest.mark.parametrize("num_shares", [1, 2])
def test_evaluation_leaves_bad_images_out_and_counts_all_others_once(tmp_path, num_shares):
    config, source, _ = photos(tmp_path, "half of a JPEG", policy="skip")
    shares = {"num_shares": num_shares, "batch_size": 4, "images": True, "targets": True}
    loaders = [EvalLoader(source, config, share_index=index, **shares) for index in range(num_shares)]
    batches = [batch for loader in loaders for batch in loader]
    assert sum(batch.num_valid for batch in batches) == 20
    labels = [int(batch.targets[row]) for batch in batches for row in batch.rows]
    assert (len(labels), sum(labels)) == (19, 9)


def test_evaluation_stops_at_a_bad_image_unless_told_otherwise(tmp_path):
    config, source, path = photos(tmp_path, "no bytes")
    loader = EvalLoader(source, config, batch_size=4, share_index=0, num_shares=1, images=True, targets=True)
    with pytest.raises(UserError, match=f"cannot read image {path}: the file is empty"):
        list(loader)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_wrong_extension_does_no_harm(tmp_path, kind):
    config, source, path = photos(tmp_path, gradient_accumulation=10)
    path.write_bytes(encoded(kind))
    assert len(list(TrainLoader(source, config, WHOLE).epoch(0))) == 1


class Vanishing:
    """One image of four is gone from a source whose images are bytes in memory."""

    labels, num_classes, class_names, notes = np.arange(4), 4, (), ()
    is_cheap = is_ready = False

    def __len__(self):
        return 4

    def item(self, index):
        return Encoded(b"" if index == 2 else encoded(), f"image {index}")


def test_the_process_with_the_labels_learns_which_images_stand_in(tmp_path):
    config = small_config(tmp_path, bad_images="skip", dataset="folder", micro_batch_size=1)
    told = []

    def tell(values, size):
        assert values is not None
        told.append(values.clone())
        return values

    def learn(values, size):
        assert values is None
        assert size == 4
        return told.pop(0)

    with_images = TrainLoader(Vanishing(), config, DataShare((0,), targets=False), tell)
    with_labels = TrainLoader(Vanishing(), config, DataShare((0,), images=False), learn)
    for epoch in range(3):
        (sent,), (received,) = list(with_images.epoch(epoch)), list(with_labels.epoch(epoch))
        assert sent.num_replaced == 1
        assert 2 not in received.targets.tolist()
        assert len(set(received.targets.tolist())) == 3


def test_one_image_that_cannot_be_read_is_an_error_even_if_it_is_all_there_is(tmp_path):
    write_images(tmp_path, {"train/ant": 1})
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"")
    keys = {"dataset": "folder", "dataset_path": str(tmp_path), "bad_images": "skip"}
    config = small_config(tmp_path, micro_batch_size=1, gradient_accumulation=1, **keys)
    with pytest.raises(UserError, match="nor 0 others after it"):
        next(TrainLoader(open_source(config, "train"), config, WHOLE).epoch(0))


def test_a_resumed_run_lists_no_image_again(tmp_path):
    for _ in range(2):
        log = BadImageLog()
        log.write_into(tmp_path)
        log.add(Bad(0, "a.png", "the file is empty"))
    assert (tmp_path / "bad_images.txt").read_text() == "a.png\tthe file is empty\n"
