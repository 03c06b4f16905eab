"""The sources that need no files, the registry, and held-out sets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batch import DataShare
from dataset.decode import to_channels
from dataset.held_out import held_out_split
from dataset.loader import TrainLoader
from dataset.registry import open_source
from errors import UserError
from tests.small import small_config

DIGITS = {"dataset": "digits", "num_channels": 1, "num_labels": 10}


def test_digits_are_scikit_learns(tmp_path):
    from sklearn.datasets import load_digits

    source = open_source(small_config(tmp_path, **DIGITS), "train")
    published = load_digits()
    assert len(source) == 1797
    assert source.labels.tolist() == published.target.tolist()
    images = torch.stack([source.item(index) for index in range(1797)])
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[:, 0].numpy(), np.rint(published.images * 255 / 16))


def test_digits_hold_out_360_images_class_by_class(tmp_path):
    config = small_config(tmp_path, **DIGITS, validation_split=0.2)
    train, validation = open_source(config, "train"), open_source(config, "validation")
    assert (len(train), len(validation)) == (1437, 360)
    everything = np.bincount(np.concatenate([train.labels, validation.labels]))
    assert np.abs(np.bincount(validation.labels) - everything * 360 / 1797).max() < 1
    pixels = {image_bytes(source, index) for source in (train, validation) for index in range(len(source))}
    whole = open_source(small_config(tmp_path, **DIGITS), "train")
    assert pixels == {image_bytes(whole, index) for index in range(len(whole))}


def image_bytes(source, index):
    return source.item(index).numpy().tobytes(), int(source.labels[index])


def test_another_seed_holds_out_others(tmp_path):
    labels = [
        open_source(
            small_config(tmp_path, **DIGITS, validation_split=0.2, random_seed=seed), "validation"
        ).labels.tolist()
        for seed in (1, 1, 2)
    ]
    assert labels[0] == labels[1] != labels[2]


def test_without_a_held_out_share_digits_have_no_validation_set(tmp_path):
    assert open_source(small_config(tmp_path, **DIGITS), "validation") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 3))
def test_a_held_out_split_is_exact_and_fair(labels, share, seed):
    labels = np.array(labels)
    train, held_out = held_out_split(labels, share, seed)
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert len(held_out) == min(len(labels), int(np.ceil(share * len(labels) - 1e-9)))
    exact = np.bincount(labels) * len(held_out) / len(labels)
    assert np.abs(np.bincount(labels[held_out], minlength=len(exact)) - exact).max() < 1


def test_places_left_by_rounding_go_to_the_largest_remainders():
    labels = np.repeat([0, 1, 2], [10, 11, 14])  # a fifth: 2.0, 2.2 and 2.8 of 7
    assert np.bincount(labels[held_out_split(labels, 0.2, seed=0)[1]]).tolist() == [2, 2, 3]


def test_more_classes_than_the_head_has_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"10 classes, but num_labels = 4.\n .*num_labels = 10"):
        open_source(small_config(tmp_path, **{**DIGITS, "num_labels": 4}), "train")
    assert len(open_source(small_config(tmp_path, **{**DIGITS, "num_labels": 12}), "train")) == 1797


def test_grey_digits_feed_a_colour_model_and_the_reverse(tmp_path):
    config = small_config(tmp_path, **{**DIGITS, "num_channels": 3}, train_crop_scale=None)
    images = next(TrainLoader(open_source(config, "train"), config, DataShare((0,))).epoch(0)).images
    assert images.shape == (8, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_colour_turns_grey_as_pillow_does_it():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    found = to_channels(pixels, 1)[:, :, 0].astype(int)
    assert np.abs(found - expected).max() <= 1  # Pillow's weights are rounded to 1/65536


@pytest.mark.parametrize("keys", [{}, {"dataset": "imagenet1k", "synthetic_data": True}])
def test_generated_data_has_all_labels_random_pixels_and_the_right_length(tmp_path, keys):
    config = small_config(tmp_path, **keys, iterations=5, num_labels=7)
    train, validation = open_source(config, "train"), open_source(config, "validation")
    assert (len(train), len(validation)) == (40, 8)
    assert set(train.labels.tolist()) == set(range(7))
    assert train.labels.dtype == np.int64
    pixels = torch.stack([train.item(index) for index in range(40)])
    assert pixels.shape == (40, 3, 8, 8)
    assert pixels.dtype == torch.uint8
    # 7,680 uniform bytes: standard error of the mean 0.84.
    assert pixels.float().mean() == pytest.approx(127.5, abs=4)
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    assert len({image.numpy().tobytes() for image in pixels}) == 40


def test_generated_data_is_a_function_of_seed_split_and_index(tmp_path):
    def image(seed, split, index):
        return open_source(small_config(tmp_path, random_seed=seed), split).item(index).numpy().tobytes()

    assert image(1, "train", 0) == image(1, "train", 0)
    assert len({image(1, "train", 0), image(2, "train", 0), image(1, "validation", 0), image(1, "train", 1)}) == 4


def test_generated_images_reach_the_model_as_they_are(tmp_path):
    config = small_config(tmp_path, rotation=30, horizontal_flip=True)  # and a random crop, by default
    source = open_source(config, "train")
    batch = next(TrainLoader(source, config, DataShare((0,))).epoch(0))
    known = {source.item(index).numpy().tobytes() for index in range(len(source))}
    assert {image.numpy().tobytes() for image in batch.images} == known


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_torchvision_can_be_imported_once_its_operators_are_declared(package):
    program = f"import dataset.transforms.torchvision_operators, {package}, torchvision; print(torchvision.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.")
