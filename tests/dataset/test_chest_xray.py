"""NIH ChestX-ray14, as its download lies on disk, in whole and in part."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest

from dataset.sources.chest_xray import FINDINGS, open_chest_xray
from errors import UserError
from tests.dataset.files import write_images
from tests.small import small_config

# The first lines of the published tables; the older one ends its lines in a comma.
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
HEADER += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
TABLE = "Data_Entry_2017_v2020.csv"
SAMPLES = ["Cardiomegaly", "Cardiomegaly|Emphysema", "No Finding", "Pneumothorax|Hernia|Atelectasis"]


def write_table(root, findings, name=TABLE, end=""):
    """A table with an image 0.png, 1.png, ... for each entry of findings."""
    root.mkdir(exist_ok=True)
    rows = [f"{number}.png,{text},0,1,57,M,PA,2682,2749,0.143,0.143" for number, text in enumerate(findings)]
    (root / name).write_text("".join(f"{row}{end}\n" for row in [HEADER, *rows]))


def chest_xray(tmp_path, split="train", **keys):
    keys = {"dataset": "chest_xray", "dataset_path": str(tmp_path / "nih"), **keys}
    return open_chest_xray(small_config(tmp_path, **keys), split)


@pytest.fixture
def nih(tmp_path):
    """The folder of four images, all in the lists: 2, 0 and 1 for training, 3 for testing."""
    root = tmp_path / "nih"
    write_table(root, SAMPLES)
    write_images(root, {"images": 4})
    (root / "train_val_list.txt").write_text("2.png\n0.png\n1.png\n")
    (root / "test_list.txt").write_text("3.png")
    return root


def names(source):
    return [os.path.basename(source.path(index)) for index in range(len(source))]


def test_findings_are_columns_of_0_and_1_in_alphabetical_order(tmp_path, nih):
    train, test = chest_xray(tmp_path), chest_xray(tmp_path, "validation")
    assert train.class_names == (*sorted(FINDINGS), "No Finding")
    assert train.num_classes == 15
    assert len(FINDINGS) == 14
    assert train.labels.dtype == np.uint8
    assert train.labels.shape == (3, 15)
    assert [np.flatnonzero(row).tolist() for row in train.labels] == [[1], [1, 5], [14]]
    assert [np.flatnonzero(row).tolist() for row in test.labels] == [[0, 7, 13]]


def test_the_published_lists_are_the_splits(tmp_path, nih):
    train, test = chest_xray(tmp_path, validation_split=0.5), chest_xray(tmp_path, "validation")
    assert names(train) == ["0.png", "1.png", "2.png"]
    assert names(test) == ["3.png"]
    assert test.item(0) == ((nih / "images" / "3.png").read_bytes(), str(nih / "images" / "3.png"))
    assert (train.num_missing, test.num_missing) == (0, 0)
    assert not train.is_cheap
    assert not train.is_ready


def test_without_no_finding_there_are_14_columns(tmp_path, nih):
    source = chest_xray(tmp_path, no_finding=False)
    assert source.class_names == FINDINGS
    assert source.num_classes == 14
    assert source.labels.shape == (3, 14)
    assert source.labels.sum(1).tolist() == [1, 2, 0]


def test_the_older_table_is_read_where_the_newer_is_not_there(tmp_path, nih):
    write_table(nih, ["Mass"] * 4, "Data_Entry_2017.csv", end=",")
    assert chest_xray(tmp_path).labels[:, 1].tolist() == [1, 1, 0]
    (nih / TABLE).unlink()
    assert chest_xray(tmp_path).labels[:, 9].tolist() == [1, 1, 1]


def test_images_lie_in_the_folders_of_their_archives_too(tmp_path, nih):
    for number, folder in enumerate(["images_001", "images_012", "images_002"]):
        (nih / folder / "images").mkdir(parents=True)
        (nih / "images" / f"{number}.png").rename(nih / folder / "images" / f"{number}.png")
    source = chest_xray(tmp_path)
    assert [os.path.relpath(source.path(index), nih) for index in range(3)] == [
        "images_001/images/0.png",
        "images_012/images/1.png",
        "images_002/images/2.png",
    ]
    assert names(chest_xray(tmp_path, "validation")) == ["3.png"]


def test_images_that_are_not_there_are_left_out_and_counted(tmp_path, nih):
    (nih / "images" / "1.png").unlink()
    source = chest_xray(tmp_path)
    assert names(source) == ["0.png", "2.png"]
    assert [np.flatnonzero(row).tolist() for row in source.labels] == [[1], [14]]
    assert source.num_missing == 1
    assert chest_xray(tmp_path, "validation").num_missing == 0


def without_lists(tmp_path, count):
    write_table(tmp_path / "nih", ["Edema"] * count)
    (tmp_path / "nih" / "images").mkdir()
    for number in range(count):
        (tmp_path / "nih" / "images" / f"{number}.png").touch()  # not opened


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_without_lists_a_random_share_is_held_out(tmp_path, share):
    without_lists(tmp_path, 50)
    train, held_out = (names(chest_xray(tmp_path, split, validation_split=share)) for split in ("train", "validation"))
    assert len(held_out) == math.ceil((share or 0.05) * 50)
    everything = [f"{number}.png" for number in range(50)]
    assert sorted([*train, *held_out], key=everything.index) == everything
    for part in (train, held_out):
        assert part == sorted(part, key=everything.index)


def test_the_share_depends_on_the_seed_alone_and_not_on_what_is_extracted(tmp_path):
    without_lists(tmp_path, 40)
    before = {
        seed: names(chest_xray(tmp_path, "validation", random_seed=seed, validation_split=0.5)) for seed in (1, 2)
    }
    assert before[1] != before[2]
    assert before[1] == names(chest_xray(tmp_path, "validation", random_seed=1, validation_split=0.5))
    (tmp_path / "nih" / "images" / before[1][0]).unlink()
    after = chest_xray(tmp_path, "validation", random_seed=1, validation_split=0.5)
    assert names(after) == before[1][1:]
    assert after.num_missing == 1


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (lambda nih: (nih / TABLE).unlink(), r"holds neither Data_Entry_2017_v2020.csv nor Data_Entry_2017.csv"),
        (lambda nih: edited(nih / TABLE, "Finding Labels", "Findings"), r"no column 'Finding Labels'.*\n.*Image Index"),
        (
            lambda nih: edited(nih / TABLE, "|Emphysema", "|Emphysem"),
            r"row 3 of .*v2020.csv has the unknown finding 'Emphysem'.\n.*Did you mean 'Emphysema'\?",
        ),
        (lambda nih: edited(nih / TABLE, "No Finding", ""), r"row 4 of .*unknown finding ''.\n.*Known: Atelectasis,"),
        (lambda nih: edited(nih / TABLE, "1.png", ""), r"row 3 of .*v2020.csv names no image"),
        (lambda nih: edited(nih / TABLE, ",0.143,0.143", ""), r"row 2 of .*v2020.csv has 9 fields, .* 11 columns"),
        (lambda nih: (nih / "test_list.txt").unlink(), r"holds train_val_list.txt, but not test_list.txt"),
        (lambda nih: (nih / "train_val_list.txt").unlink(), r"holds test_list.txt, but not train_val_list.txt"),
        (
            lambda nih: (nih / "test_list.txt").write_text("3.png\n9.png\n"),
            r"line 2 of .*test_list.txt names '9.png', which the table",
        ),
        (lambda nih: (nih / "test_list.txt").write_text("3.png\n1.png\n"), r"'1.png' is in both lists"),
        (lambda nih: (nih / "test_list.txt").write_bytes(b"\xff\xfe"), r"cannot read .*test_list.txt"),
        (lambda nih: (nih / "train_val_list.txt").write_text(""), r"no image for train.*\n.*train_val_list.txt"),
        (
            lambda nih: (nih / "images").rename(nih / "pictures"),
            r"none of the 3 images for train: 0.png, 1.png, 2.png\n.*images_001.tar.gz",
        ),
    ],
)
def test_what_is_wrong_in_the_folder_is_explained(tmp_path, nih, fault, match):
    fault(nih)
    with pytest.raises(UserError, match=match):
        chest_xray(tmp_path)


@pytest.mark.parametrize(
    ("path", "match"),
    [(None, r"needs dataset_path, the folder with Data_Entry"), ("nowhere", r"nowhere is not a folder")],
)
def test_a_missing_folder_is_explained(tmp_path, path, match):
    with pytest.raises(UserError, match=match):
        chest_xray(tmp_path, dataset_path=path)
