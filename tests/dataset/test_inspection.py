"""Going over a split: what is counted, and which images are found bad, for what reason."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from dataset.base import BadImageError, Encoded
from dataset.inspection import BUCKETS, inspect
from dataset.registry import open_source
from errors import UserError
from tests.dataset.files import write_images
from tests.dataset.numbered import Numbered
from tests.small import small_config


def opened(tmp_path, split="train", **keys):
    config = small_config(tmp_path, command="verify", **{"dataset": "folder", "dataset_path": str(tmp_path), **keys})
    return open_source(config, split), config


def gone_over(source, config):
    """The report, the bad images, and the numbers of images that progress was told of."""
    bad, steps = [], []
    report = inspect(source, config, steps.append, bad.append)
    return report, bad, steps


def write_image(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def test_every_image_of_a_good_set_is_counted_once(tmp_path):
    write_images(tmp_path, {"train/a": 20, "train/b": 37, "train/c": 1})  # several chunks, the last not full
    report, bad, steps = gone_over(*opened(tmp_path))
    assert (report.num_images, report.num_bad, bad) == (58, 0, [])
    assert report.images_of_label.tolist() == [20, 37, 1, 0, 0]  # num_labels = 5
    assert sum(report.sizes.short_sides) == 58
    assert sum(steps) == 58
    assert len(steps) > 2


def test_each_kind_of_bad_image_is_found_with_its_reason(tmp_path):
    write_images(tmp_path, {"train/a": 30, "train/b": 10}, size=(40, 40))
    a = tmp_path / "train" / "a"
    (a / "1.png").write_bytes(b"")
    whole = (a / "2.png").read_bytes()
    (a / "2.png").write_bytes(whole[: len(whole) // 2])
    (a / "3.png").write_bytes(b"<html>404</html>")
    write_image(a / "4.png", 60, 50)
    jpeg = tmp_path / "train" / "b" / "x.jpg"
    Image.open(a / "5.png").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    source, config = opened(tmp_path, max_image_pixels=2000)
    (a / "6.png").unlink()  # between listing and reading
    report, bad, _ = gone_over(source, config)
    reasons = {os.path.relpath(one.where, tmp_path / "train"): one.reason for one in bad}
    assert sorted(reasons) == ["a/1.png", "a/2.png", "a/3.png", "a/4.png", "a/6.png", "b/x.jpg"]
    assert reasons["a/1.png"] == "the file is empty"
    assert "truncated" in reasons["a/2.png"]
    assert "not an image" in reasons["a/3.png"]
    assert reasons["a/4.png"] == "60 x 50 pixels are more than max_image_pixels = 2,000"
    assert reasons["a/6.png"] == "No such file or directory"
    assert "truncated" in reasons["b/x.jpg"]
    assert (report.num_images, report.num_bad) == (41, 6)
    assert report.bad_of_label.tolist() == [5, 1, 0, 0, 0]
    assert report.images_of_label.tolist() == [30, 11, 0, 0, 0]
    assert sum(report.sizes.short_sides) == 35
    assert [one.number for one in bad] == sorted(one.number for one in bad)


def test_sizes_are_counted_by_the_short_side(tmp_path):
    sides = [1, 31, 32, 63, 64, 127, 128, 223, 224, 447, 448, 895, 896, 900]
    for number, side in enumerate(sides):
        write_image(tmp_path / "train" / "a" / f"{number:02d}.png", *((side, 1000) if number % 2 else (1000, side)))
    write_image(tmp_path / "train" / "a" / "99.png", 901, 2000)
    report, _, _ = gone_over(*opened(tmp_path, image_size=64))
    assert BUCKETS == (32, 64, 128, 224, 448, 896)
    assert report.sizes.short_sides == [2, 2, 2, 2, 2, 2, 3]
    assert report.sizes.num_small == 4
    smallest, largest = report.sizes.smallest, report.sizes.largest
    assert smallest is not None and largest is not None
    assert (smallest.width, smallest.height, os.path.basename(smallest.where)) == (1000, 1, "00.png")
    assert (largest.width, largest.height, os.path.basename(largest.where)) == (901, 2000, "99.png")


def test_of_images_alike_the_first_is_named_though_many_processes_look(tmp_path):
    write_images(tmp_path, {"train/a": 50})
    source, config = opened(tmp_path)
    report, _, _ = gone_over(source, config)
    assert report.sizes.smallest == report.sizes.largest == (12, 10, source.path(0))


def test_images_turned_by_their_camera_are_measured_upright(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 20)).save(tmp_path / "train" / "a" / "x.jpg", exif=exif)
    report, _, _ = gone_over(*opened(tmp_path))
    assert report.sizes.largest is not None
    assert report.sizes.largest[:2] == (20, 80)


def test_several_labels_an_image_count_each(tmp_path):
    write_images(tmp_path, {"images": 4})
    rows = ["image,x,y,z", "images/0.png,1,1,0", "images/1.png,0,1,0", "images/2.png,0,0,0", "images/3.png,1,1,0"]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "images" / "3.png").write_bytes(b"")
    report, bad, _ = gone_over(*opened(tmp_path, dataset="csv", num_labels=3, loss="SigmoidCELoss"))
    assert report.images_of_label.tolist() == [2, 3, 0]
    assert report.num_without_label == 1
    assert report.bad_of_label.tolist() == [1, 1, 0]
    assert len(bad) == 1


def test_images_in_memory_are_measured_as_they_are(tmp_path):
    report, bad, _ = gone_over(*opened(tmp_path, dataset="digits", num_labels=10, num_channels=1))
    assert (report.num_images, bad) == (1797, [])
    assert report.images_of_label.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as scikit-learn says
    assert report.sizes.short_sides == [1797, 0, 0, 0, 0, 0, 0]
    assert report.sizes.smallest == (8, 8, "image 0")


def test_generated_images_have_the_size_that_the_model_takes(tmp_path):
    report, _, _ = gone_over(*opened(tmp_path, dataset="generated", iterations=3, image_size=40))
    assert report.sizes.short_sides == [0, 24, 0, 0, 0, 0, 0]  # 3 host steps of 2 x 4


class Failing(Numbered):
    """Its images exist only as far as `end`, where `fault` happens."""

    is_ready = False

    def __init__(self, fault) -> None:
        super().__init__(64)
        self._fault = fault

    def item(self, index: int):
        return super().item(index) if index < 40 else self._fault(index)


def missing(index):
    raise BadImageError(f"number {index}", "gone")


def broken(index):
    raise ZeroDivisionError("a fault of our own")


def killed(index):
    os.kill(os.getpid(), 9)


def test_what_a_source_itself_finds_bad_is_listed_in_order(tmp_path):
    config = small_config(tmp_path, command="verify", num_labels=64)
    report, bad, _ = gone_over(Failing(missing), config)
    assert [one.where for one in bad] == [f"number {index}" for index in range(40, 64)]
    assert np.flatnonzero(report.bad_of_label).tolist() == list(range(40, 64))


def test_a_fault_of_our_own_is_not_taken_for_a_bad_image(tmp_path):
    with pytest.raises(ZeroDivisionError, match="a fault of our own"):
        gone_over(Failing(broken), small_config(tmp_path, command="verify", num_labels=64))


@pytest.mark.slow  # torch waits for the processes that are left
def test_a_process_that_is_killed_ends_the_work_with_advice(tmp_path):
    with pytest.raises(UserError, match="want of memory") as error:
        gone_over(Failing(killed), small_config(tmp_path, command="verify", num_labels=64))
    assert "max_image_pixels = 89,478,485" in str(error.value)


def test_an_empty_file_in_an_item_is_bad(tmp_path):
    source = Failing(lambda index: Encoded(b"", f"number {index}"))
    _, bad, _ = gone_over(source, small_config(tmp_path, command="verify", num_labels=64))
    assert {one.reason for one in bad} == {"the file is empty"}
