"""`verify.py` as a user runs it: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from PIL import Image

import inspection_text
import verify
from dataset.inspection import BadImage, Report, Sizes
from errors import UserError
from tests import warm
from tests.dataset.files import write_images
from tests.small import TINY_CONFIGS

ROOT = Path(__file__).resolve().parent.parent


def verified(folder: Path, capsys: Any, *flags: str, code: int = 0) -> str:
    """Standard output of the command on the class folders in `folder`, run in this process."""
    path = folder / "configs.yaml"
    path.write_text(TINY_CONFIGS.replace("dataset: generated", "dataset: folder"))
    sheet = () if any(flag.startswith("--contact") for flag in flags) else ("--contact-sheet", "")
    arguments = ["--config-file", str(path), "--dataset-path", str(folder), *sheet, *flags]
    assert verify.main(arguments) == code
    return str(capsys.readouterr().out)


def command(*flags: str) -> List[str]:
    return [sys.executable, str(ROOT / "verify.py"), *flags]


def run(folder: Path, *flags: str, code: int = 0, bare: bool = False) -> str:
    done = (subprocess.run if bare else warm.run)(
        command(*flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def test_a_good_set_is_described_from_any_folder(tmp_path: Path) -> None:
    write_images(tmp_path, {"my/train/cat": 20, "my/train/dog": 10, "my/val/cat": 3})
    output = run(tmp_path, "--config", "folder", "--dataset-path", "my", bare=True)
    assert "train: 30 images, 0 bad, 2 classes" in output
    assert re.search(r"^cat +20 +66\.7 %$", output, re.M)
    assert re.search(r"^dog +10 +33\.3 %$", output, re.M)
    assert "images per class: min 10, median 15, max 20" in output
    assert "validation: 3 images, 0 bad, 1 class\n" in output
    assert "classes of num_labels = 2 without images: dog" in output
    assert re.search(r"^<32 +30  #{40}$", output, re.M)
    assert "smallest: 12 x 10, my/train/cat/0.png" in output
    assert "smaller than image_size = 64: 30 (100.0 %)" in output
    assert output.endswith("contact sheet: contact_sheet.png\nno bad image among 33\n")
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert (sheet.format, sheet.width > 8 * 128, sheet.height > 6 * 128) == ("PNG", True, True)


def test_bad_images_are_listed_and_end_with_1(tmp_path: Path) -> None:
    write_images(tmp_path, {"my/train/cat": 20, "my/train/dog": 10, "my/val/cat": 3})
    (tmp_path / "my/train/dog/3.png").write_bytes(b"")
    (tmp_path / "my/val/cat/0.png").write_bytes(b"<html>")
    output = run(tmp_path, "--config", "folder", "--dataset-path", "my", "--list", "bad.txt", code=1)
    assert "bad images: 2" in output
    assert re.search(r"^train +my/train/dog/3\.png +the file is empty$", output, re.M)
    assert re.search(r"^validation +my/val/cat/0\.png +not an image", output, re.M)
    assert re.search(r"^dog +10 +33\.3 % +1$", output, re.M)
    assert output.splitlines()[-1].startswith("2 of 33 images are bad: ")
    listed = (tmp_path / "bad.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["my/train/dog/3.png", "my/val/cat/0.png"]


def test_only_the_first_bad_images_are_printed_and_all_are_written(tmp_path: Path, capsys: Any) -> None:
    write_images(tmp_path, {"train/a": 25})
    for number in range(25):
        (tmp_path / "train" / "a" / f"{number}.png").write_bytes(b"")
    output = verified(tmp_path, capsys, "--contact-sheet", str(tmp_path / "x.png"), code=1)
    assert output.count("the file is empty") == 20
    assert "and 5 more; --list FILE writes all" in output
    assert "sizes: no image could be read" in output
    assert "no contact sheet: none of the images" in output
    assert not (tmp_path / "x.png").exists()
    output = verified(tmp_path, capsys, "--list", str(tmp_path / "bad.txt"), code=1)
    assert "and 5 more\n" in output
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 25


def test_names_that_are_no_utf8_are_listed_as_they_are(tmp_path: Path) -> None:
    write_images(tmp_path, {"my/train/a": 1})
    name = os.fsencode(tmp_path) + b"/my/train/a/\xff\n.png"
    Path(os.fsdecode(name)).write_bytes(b"")
    output = run(tmp_path, "--config", "folder", "--dataset-path", "my", "--list", "bad.txt", code=1)
    assert "my/train/a/\ufffd?.png" in output
    assert b"my/train/a/\xff\n.png\tthe file is empty\n" in (tmp_path / "bad.txt").read_bytes()


def test_several_labels_an_image_are_counted_each(tmp_path: Path, capsys: Any) -> None:
    write_images(tmp_path, {"images": 4})
    rows = ["image,x,y", "images/0.png,1,1", "images/1.png,0,1", "images/2.png,0,0", "images/3.png,0,1"]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    flags = ["--dataset", "csv", "--num-labels", "2", "--loss", "SigmoidCELoss"]
    output = verified(tmp_path, capsys, *flags)
    assert "train: 4 images, 0 bad, 2 labels" in output
    assert re.search(r"^y +3 +75\.0 %$", output, re.M)
    assert "images per label: min 1, median 2, max 3" in output
    assert "images without a label: 1" in output


def test_of_many_classes_the_ends_are_printed() -> None:
    counts = np.arange(30, 0, -1)
    counts[29] = 0
    report = Report(int(counts.sum()), counts, 0, Sizes(), np.zeros(30, dtype=np.int64))
    headers, rows = inspection_text.class_table(report, [f"name {label}" for label in range(25)])
    assert headers == ["class", "images", "share"]
    names = [row[0] for row in rows]
    assert names == [*(f"name {label}" for label in range(10)), "(14 more)", "name 24", "25", "26", "27", "28"]


def test_a_bar_shows_every_bucket_that_has_images() -> None:
    sizes = Sizes(short_sides=[0, 1, 10_000, 2_500, 0, 0, 0])
    sizes.smallest = sizes.largest = verify_image()
    lines = "\n".join(inspection_text.size_lines(sizes, 64)).splitlines()
    assert [line.count("#") for line in lines[2:9]] == [0, 1, 40, 10, 0, 0, 0]
    assert lines[3].split()[:2] == ["32-63", "1"]


def verify_image() -> Any:
    from dataset.inspection import SizedImage

    return SizedImage(40, 50, "x.png")


def test_the_list_keeps_only_the_first_in_memory() -> None:
    with verify.BadList(None) as bad:
        for number in range(1000):
            bad.add(BadImage(number, f"{number}.png", "empty"))
    assert bad.count == 1000
    assert bad.lines()[-1] == "and 980 more; --list FILE writes all"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samples", "0"], ["--samples 0", "1 to 100"]),
        (["--samples", "six"], ["--samples", "six"]),
        (["--contact-sheet", "sheet.jpg"], ["sheet.jpg", ".png"]),
        (["--contact_sheet=nowhere/sheet.png"], ["nowhere", "cannot be written"]),
        (["--list", "nowhere/bad.txt"], ["nowhere/bad.txt", "No such file"]),
        (["--lernig-rate", "1"], ["--lernig-rate"]),
    ],
)
def test_a_users_mistake_is_told_before_the_work(
    tmp_path: Path, capsys: Any, flags: List[str], words: List[str]
) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 1})
    with pytest.raises(UserError) as error:
        verified(tmp_path, capsys, *flags)
    for word in words:
        assert word in str(error.value)


def test_it_needs_no_right_number_of_labels(tmp_path: Path, capsys: Any) -> None:
    write_images(tmp_path, {"train/a": 1, "train/b": 2, "train/c": 3})
    assert "train: 6 images, 0 bad, 3 classes" in verified(tmp_path, capsys, "--num-labels", "2")


def test_it_needs_neither_a_learning_rate_nor_a_length(tmp_path: Path, capsys: Any) -> None:
    write_images(tmp_path, {"train/a": 1})
    output = verified(tmp_path, capsys, "--training-steps", "0", "--learning-rate", "null")
    assert "no bad image among 1\n" in output


def test_a_users_mistake_ends_with_2_and_help_shows_its_flags(tmp_path: Path) -> None:
    output = run(tmp_path, "--config", "folder", "--dataset-path", "nowhere", code=2)
    assert output.startswith("error: dataset_path = nowhere is not a folder")
    assert "Traceback" not in output
    output = run(tmp_path, "--help")
    for flag in ("--contact-sheet FILE.png", "--samples N", "--list FILE", "--dataset-path", "--random-seed"):
        assert flag in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_leaves_no_process(tmp_path: Path) -> None:
    write_images(tmp_path, {"my/train/a": 1}, size=(2500, 2500))
    for number in range(1, 400):
        os.link(tmp_path / "my/train/a/0.png", tmp_path / f"my/train/a/{number}.png")
    process = warm.Popen(
        command("--config", "folder", "--dataset-path", "my", "--num-labels", "2"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # What starts in the background of a shell ignores SIGINT, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (workers := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the command and to its workers
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
