"""Class folders of image files, of many kinds and with many faults."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.base import BadImageError
from dataset.decode import open_picture
from dataset.registry import open_source
from errors import UserError
from tests.dataset.files import write_images
from tests.small import small_config


def folder(tmp_path, split="train", path=None, **keys):
    keys = {"dataset": "folder", "dataset_path": str(path or tmp_path), **keys}
    return open_source(small_config(tmp_path, **keys), split)


@pytest.mark.parametrize("dataset", ["folder", "imagenet1k"])
@pytest.mark.parametrize("validation", ["validation", "val"])
def test_class_folders_are_read_in_order_of_names(tmp_path, dataset, validation):
    write_images(
        tmp_path, {"train/b": 2, "train/a": 3, "train/c/deep/er": 1, f"{validation}/c": 1, f"{validation}/a": 1}
    )
    train = folder(tmp_path, dataset=dataset)
    assert train.class_names == ("a", "b", "c")
    assert train.num_classes == 3
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert train.labels.dtype == np.int32
    paths = [os.path.relpath(train.path(index), tmp_path / "train") for index in range(6)]
    assert paths == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "c/deep/er/0.png"]
    # Numbered as in train/, although class b is not there.
    assert folder(tmp_path, "validation", dataset=dataset).labels.tolist() == [0, 2]


def test_other_files_and_hidden_folders_are_passed_over(tmp_path):
    write_images(tmp_path, {"train/a": 1, "train/b": 1, "train/.ipynb_checkpoints": 1})
    (tmp_path / "train" / "README.txt").write_text("not a class")
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"what a Mac leaves on other disks")
    source = folder(tmp_path)
    assert source.class_names == ("a", "b")
    assert len(source) == 2


def test_names_in_any_script_are_found_again(tmp_path):
    write_images(tmp_path, {"train/große Käfer": 1, "train/蝶": 2})
    os.rename(tmp_path / "train" / "蝶" / "1.png", os.fsencode(tmp_path / "train" / "蝶") + b"/\xff\xfe.PNG")
    source = folder(tmp_path)
    assert source.class_names == ("große Käfer", "蝶")
    assert [pixels(source, index).shape for index in range(3)] == [(3, 10, 12)] * 3


def pixels(source, index, num_channels=3):
    """[C, h, w] of a sample, decoded as it is."""
    picture = open_picture(source.item(index), num_channels, max_pixels=10**9)
    return torch.from_numpy(picture.pixels(least=1.0).copy()).permute(2, 0, 1)


def red(mode):
    """A 6 x 4 image of pure red, or of full brightness, in a Pillow mode."""
    rgb = Image.new("RGB", (6, 4), (255, 0, 0))
    if mode == "I;16":
        return Image.fromarray(np.full((4, 6), 65535, dtype=np.uint16))
    if mode == "P with transparency":
        palette = rgb.convert("P")
        palette.info["transparency"] = bytes([255, 0, 7])
        return palette
    return rgb.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name", "colour"),
    [
        ("RGB", "x.png", (255, 0, 0)),
        ("RGB", "x.jpg", (254, 0, 0)),
        ("RGB", "x.JPEG", (254, 0, 0)),
        ("CMYK", "x.jpg", (254, 0, 0)),
        ("RGB", "x.bmp", (255, 0, 0)),
        ("RGB", "x.tiff", (255, 0, 0)),
        ("RGBA", "x.png", (255, 0, 0)),
        ("P", "x.png", (255, 0, 0)),
        ("P", "x.gif", (255, 0, 0)),
        ("P with transparency", "x.png", (255, 0, 0)),
        ("L", "x.png", (76, 76, 76)),
        ("LA", "x.png", (76, 76, 76)),
        ("1", "x.png", None),
        ("I;16", "x.png", (255, 255, 255)),
        ("I;16", "x.tif", (255, 255, 255)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_images_of_any_mode_become_rgb_bytes(tmp_path, mode, name, colour):
    (tmp_path / "train" / "a").mkdir(parents=True)
    red(mode).save(tmp_path / "train" / "a" / name)
    image = pixels(folder(tmp_path), 0)
    assert image.shape == (3, 4, 6)
    assert image.dtype == torch.uint8
    if colour is not None:
        np.testing.assert_allclose(image.float().mean((1, 2)).numpy(), colour, atol=2)  # JPEG's own loss


def test_a_model_of_grey_images_gets_one_channel(tmp_path):
    write_images(tmp_path, {"train/a": 1})
    expected = np.asarray(Image.open(tmp_path / "train/a/0.png").convert("L"))
    np.testing.assert_array_equal(pixels(folder(tmp_path), 0, num_channels=1)[0].numpy(), expected)


def test_photographs_are_turned_upright(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    stored = np.zeros((4, 8, 3), dtype=np.uint8)
    stored[:, :2] = 255  # bright on the left, which the camera says is the bottom
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(stored).save(tmp_path / "train" / "a" / "x.png", exif=exif)
    image = pixels(folder(tmp_path), 0)
    assert image.shape == (3, 8, 4)
    assert image[:, -2:].min() == 255
    assert image[:, :-2].max() == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "not an image"),
        ("half of a PNG", "truncated"),
        ("vanished", "No such file"),
        ("a folder", "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, content, reason):
    write_images(tmp_path, {"train/a": 2}, size=(64, 64))
    source, path = folder(tmp_path), tmp_path / "train" / "a" / "1.png"
    whole = path.read_bytes()
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content != "vanished":
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(BadImageError, match=reason) as error:
        pixels(source, 1)
    assert error.value.where == str(path)
    assert pixels(source, 0).shape == (3, 64, 64)


def test_without_a_validation_folder_there_is_none_or_a_held_out_share(tmp_path):
    write_images(tmp_path, {"train/a": 10, "train/b": 20})
    assert folder(tmp_path, "validation") is None
    train, held_out = (folder(tmp_path, split, validation_split=0.2) for split in ("train", "validation"))
    assert np.bincount(train.labels).tolist() == [8, 16]
    assert np.bincount(held_out.labels).tolist() == [2, 4]
    assert held_out.class_names == ("a", "b")


def test_a_validation_folder_wins_over_a_held_out_share(tmp_path):
    write_images(tmp_path, {"train/a": 10, "val/a": 3})
    assert len(folder(tmp_path, "train", validation_split=0.5)) == 10
    assert len(folder(tmp_path, "validation", validation_split=0.5)) == 3


def test_validation_images_alone_can_be_evaluated(tmp_path):
    write_images(tmp_path, {"val/a": 1, "val/b": 2})
    assert folder(tmp_path, "validation").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("images", "path", "split", "words"),
    [
        ({}, None, "train", ["needs dataset_path", "--dataset-path"]),
        ({}, "nowhere", "train", ["nowhere", "is not a folder", "train/"]),
        ({}, "", "train", ["no train/ folder", "holds no folders"]),
        ({"cats": 1, "dogs": 1}, "", "train", ["no train/ folder", "it holds cats, dogs", "train/<class name>"]),
        ({"train": 3}, "", "train", ["train holds no class folders"]),
        ({"train/a": 1, "train/b": 0}, "", "train", ["train/b holds no images", ".jpg"]),
        ({"train/a": 1, "val/a": 0}, "", "validation", ["val holds no images"]),
        ({"train/cat": 1, "val/cats": 1}, "", "validation", ["val/cats", "Did you mean 'cat'?"]),
        (
            {"train/a": 1, "train/b": 1, "train/c": 1, "train/d": 1, "train/e": 1, "train/f": 1},
            "",
            "train",
            ["6 classes"],
        ),
    ],
)
def test_missing_folders_and_images_are_explained(tmp_path, images, path, split, words):
    root = tmp_path / "images"
    root.mkdir()
    write_images(root, images)
    keys = {} if path is None else {"dataset_path": str(root / path)}
    with pytest.raises(UserError) as error:
        open_source(small_config(tmp_path, dataset="folder", **keys), split)
    for word in words:
        assert word in str(error.value)


def test_hidden_folders_and_circular_links_below_a_class_are_passed_over(tmp_path):
    write_images(tmp_path, {"train/a": 2, "train/a/.ipynb_checkpoints": 1, "elsewhere": 3})
    (tmp_path / "train" / "a" / "up").symlink_to(tmp_path / "train" / "a")
    (tmp_path / "train" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(folder(tmp_path)) == 5


def settle(root):
    """Puts the times of all folders into the past, so that an index of them is kept."""
    for path, _, _ in os.walk(root):
        os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.mark.parametrize("link", ["train/b", "train/a/more"])
def test_what_appears_behind_a_dead_link_is_seen(tmp_path, monkeypatch, link):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "data", {"train/a": 2, "train/c": 2})
    (tmp_path / "data" / link).symlink_to(tmp_path / "volume")
    settle(tmp_path / "data")
    assert len(folder(tmp_path / "data")) == 4
    write_images(tmp_path, {"volume": 3})
    settle(tmp_path)
    assert len(folder(tmp_path / "data")) == 7


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write_images(tmp_path, {"train/a": 1, "train/b": 1})
    whole = os.scandir

    def refuse(path="."):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot list .*train/b: Permission denied"):
        folder(tmp_path)
