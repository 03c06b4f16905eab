"""The contact sheet: its cells are what the model gets, its text stays in its place."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from dataset import contact_sheet as sheets
from dataset.contact_sheet import NUM_EPOCHS, augmentations, choose_rows, contact_sheet, draw_sheet, remarks
from dataset.order import Order
from dataset.registry import open_source
from dataset.samples import Samples
from tests.dataset.files import write_images
from tests.small import small_config

AUGMENTED = {"train_crop_scale": [0.3, 1.0], "horizontal_flip": True, "rotation": 20.0}


def opened(tmp_path, **keys):
    config = small_config(tmp_path, command="verify", **{"dataset": "folder", "dataset_path": str(tmp_path), **keys})
    return open_source(config, "train"), config


def places(sheet, pixels):
    """(left, top) of every place in `sheet` [H, W, 3] that holds exactly `pixels` [h, w, 3]."""
    height, width = pixels.shape[:2]
    corners = np.argwhere((sheet == pixels[0, 0]).all(-1))
    return [
        (int(left), int(top))
        for top, left in corners
        if np.array_equal(sheet[top : top + height, left : left + width], pixels)
    ]


def enlarged(image, factor):
    """[C, S, S] to [S * factor, S * factor, C]: each pixel as a square."""
    return image.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)


def test_cells_are_what_samples_read_gives_epoch_after_epoch(tmp_path):
    write_images(tmp_path, {"train/a": 2, "train/b": 1}, size=(60, 50))
    source, config = opened(tmp_path, image_size=40, **AUGMENTED)
    sheet = np.asarray(contact_sheet(source, config, 6))
    evaluation = Samples(source, config, augmented=False).read(Order(None, np.arange(3)))[0]
    training = [Samples(source, config, augmented=True).read(Order(epoch, np.arange(3)))[0] for epoch in range(7)]
    lefts, tops = [], []
    for row in range(3):
        found = [places(sheet, enlarged(images[row], 3)) for images in [evaluation, *training]]  # 3 x 40 is 96 or more
        assert [len(cell) for cell in found] == [1] * 8
        tops.append([top for ((_, top),) in found])
        lefts.append([left for ((left, _),) in found])
    assert all(len(set(row)) == 1 for row in tops)
    assert lefts[0] == lefts[1] == lefts[2] == sorted(lefts[0])
    steps = np.diff([row[0] for row in tops]).tolist() + np.diff(lefts[0]).tolist()
    assert min(steps) > 120  # nothing overlaps
    assert sheet.shape[1] - (lefts[0][-1] + 120) == sheet.shape[0] - (tops[-1][0] + 120) == sheets.MARGIN


@pytest.mark.parametrize(("image_size", "side"), [(8, 96), (96, 96), (100, 100), (64, 128), (256, 256), (384, 256)])
def test_a_cell_is_large_enough_to_see_and_small_enough_for_a_screen(tmp_path, image_size, side):
    write_images(tmp_path, {"train/a": 1})
    source, config = opened(tmp_path, image_size=image_size, patches_size=4)
    rows = choose_rows(source, config, 6)
    assert rows[0].cells.shape == (1 + NUM_EPOCHS, 3, image_size, image_size)
    sheet = contact_sheet(source, config, 6)
    assert sheet is not None
    gaps = sheets.WIDE_GAP * 2 + sheets.GAP * (NUM_EPOCHS - 1) + 2 * sheets.MARGIN
    labels = sheet.width - gaps - 8 * side
    assert 20 < labels <= sheets.MOST_OF_LABELS


def test_grey_images_stay_grey(tmp_path):
    source, config = opened(tmp_path, dataset="digits", num_labels=10, num_channels=1)
    sheet = np.asarray(contact_sheet(source, config, 2))
    assert (sheet[:, :, 0] == sheet[:, :, 1]).all(-1).mean() == 1


def test_rows_are_drawn_by_the_seed_and_stand_in_the_order_of_the_data(tmp_path):
    write_images(tmp_path, {"train/a": 20, "train/b": 20})
    chosen = [
        [row.label + row.name for row in choose_rows(*opened(tmp_path, random_seed=seed), 6)] for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert chosen[0] != chosen[2]
    assert len(set(chosen[0])) == 6


def test_bad_images_are_passed_over(tmp_path):
    write_images(tmp_path, {"train/a": 10})
    for number in range(8):
        (tmp_path / "train" / "a" / f"{number}.png").write_bytes(b"")
    assert [row.name for row in choose_rows(*opened(tmp_path), 6)] == ["8.png", "9.png"]


def test_where_no_image_can_be_read_there_is_no_sheet(tmp_path):
    write_images(tmp_path, {"train/a": 1})
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"")
    assert contact_sheet(*opened(tmp_path), 6) is None


def test_a_row_names_its_class_file_and_size_in_letters_that_the_font_has(tmp_path):
    write_images(tmp_path, {"train/Käfer?": 1, "train/Straße": 1, "train/蝶": 1})
    os.rename(tmp_path / "train" / "蝶" / "0.png", tmp_path / "train" / "蝶" / "été.png")
    rows = [row[:3] for row in choose_rows(*opened(tmp_path), 6)]
    assert rows == [
        ("Kafer?", "0.png", "12 x 10"),
        ("class 1: Stra?e", "0.png", "12 x 10"),
        ("class 2: ?", "ete.png", "12 x 10"),
    ]


def test_a_row_names_all_labels_of_its_image(tmp_path):
    write_images(tmp_path, {"images": 2})
    (tmp_path / "train.csv").write_text("image,x,y,z\nimages/0.png,1,0,1\nimages/1.png,0,0,0\n")
    rows = choose_rows(*opened(tmp_path, dataset="csv", num_labels=3, loss="SigmoidCELoss"), 6)
    assert [row.label for row in rows] == ["x, z", "no label"]


@pytest.mark.parametrize("word", ["pneumonoultramicroscopicsilicovolcanoconiosis" * 3, "many words " * 30, "W"])
def test_labels_keep_clear_of_the_pictures_and_of_each_other(word):
    cells = np.zeros((1 + NUM_EPOCHS, 3, 96, 96), dtype=np.uint8)
    rows = [sheets.Row(word, word + ".jpg", "500 x 375", cells)] * 2
    sheet = np.asarray(draw_sheet(rows, word, [word]))
    ink = (sheet < 200).any(-1)
    left, top = places(sheet, np.zeros((96, 96, 3), dtype=np.uint8))[0]
    clear = slice(left - sheets.WIDE_GAP + 2, left - 1)
    assert not ink[top:, clear].any()
    assert not ink[:, : sheets.MARGIN - 1].any()
    assert not ink[:, -sheets.MARGIN + 1 :].any()
    assert not ink[top + 97 : top + 96 + sheets.GAP - 1, :left].any()
    assert ink[top : top + 96, sheets.MARGIN : left - sheets.WIDE_GAP].any()


def test_every_augmentation_that_is_on_is_named(tmp_path):
    assert augmentations(small_config(tmp_path, train_crop_scale=None)) == []
    colours = {"extra_aug": "randaugment", "color_jitter": 0.3, "contrast": 0.4, "hue": 0.1}
    moves = {"crop_padding": 4, "translate": 0.1, "shear": 5.0, "zoom": 0.2, "random_erasing": 0.25}
    keys = {**AUGMENTED, **colours, **moves}
    assert augmentations(small_config(tmp_path, **keys)) == [
        *("random crop of 0.3 to 1 of the area", "shift of up to 4 pixels", "horizontal flip"),
        *("randaugment (n 2, m 9)", "colour jitter 0.3", "contrast 0.4", "hue 0.1", "rotation 20°"),
        *("translation 0.1", "shear 5°", "zoom 0.2", "random erasing 0.25"),
    ]


def test_mixing_is_said_not_to_be_shown(tmp_path):
    source, config = opened(tmp_path, dataset="generated", mixup=True, alpha=0.5)
    assert remarks(source, config) == [
        "These images come as they are shown: they are not augmented.",
        "Mixing (mixup) is on, but not shown.",
    ]
    assert isinstance(contact_sheet(source, config, 1), Image.Image)


def test_rows_are_of_different_classes_where_there_are_enough(tmp_path):
    write_images(tmp_path, {"train/ant": 60, "train/bee": 2, "train/cat": 2})
    config = small_config(tmp_path, dataset="folder", dataset_path=str(tmp_path))
    source = open_source(config, "train")
    assert sorted({row.label for row in choose_rows(source, config, 3)}) == ["ant", "bee", "cat"]
    assert [row.label for row in choose_rows(source, config, 5)].count("ant") <= 2
