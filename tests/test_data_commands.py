"""Training on files, as a user starts it: several labels an image, images that cannot be read, names of classes."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
from PIL import Image

from tests.dataset.files import write_images
from tests.test_commands import run

SMALL = [
    *(
        "--config",
        "folder",
        "--image-size",
        "8",
        "--patches-size",
        "4",
        "--hidden-size",
        "16",
        "--num-hidden-layers",
        "2",
    ),
    *("--num-attention-heads", "2", "--mlp-dim", "32", "--micro-batch-size", "4", "--gradient-accumulation", "2"),
    *("--warmup-steps", "2", "--epochs", "2", "--dataloader-workers", "1", "--device", "cpu"),
]
SINGLE = ["--runtime", "single", "--threads-per-process", "1", "--checkpoint-output-dir", "single"]
STAGES = ["--layers-per-ipu", "1", "1", "--ipus-per-replica", "2"]
PIPELINE = ["--runtime", "pipeline", *STAGES, "--checkpoint-output-dir", "pipeline"]


def records(folder: Path, event: str) -> List[Dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [fields for fields in map(json.loads, lines) if fields["event"] == event]


def losses(folder: Path) -> List[float]:
    """Of all steps and validations."""
    return [fields["loss"] for event in ("step", "validation") for fields in records(folder, event)]


def images_of(folder: Path, count: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")


@pytest.mark.slow
@pytest.mark.pipeline
def test_images_that_cannot_be_read_change_nothing_between_one_device_and_a_pipeline(tmp_path: Path) -> None:
    write_images(tmp_path / "data", {"train/ant": 17, "train/bee": 20, "val/ant": 5, "val/bee": 6})
    bad = [tmp_path / "data" / name for name in ("train/ant/3.png", "train/bee/7.png", "val/bee/0.png")]
    for path in bad:
        path.write_bytes(b"")
    flags = [*SMALL, "--dataset-path", "data", "--num-labels", "2", "--bad-images", "skip"]
    outputs = [run(tmp_path, "pretrain.py", *flags, *where) for where in (SINGLE, PIPELINE)]
    for output, folder in zip(outputs, (tmp_path / "single", tmp_path / "pipeline")):
        assert "the next images stand in for" in output
        assert "bad_images.txt" in output
        assert "(10 samples" in output  # of 11
        listed = [line.split("\t") for line in (folder / "bad_images.txt").read_text().splitlines()]
        assert all(reason == "the file is empty" for _, reason in listed)
        assert len(listed) == len({path for path, _ in listed})
        assert {str(tmp_path / path) for path, _ in listed} <= set(map(str, bad))
        assert str(bad[2]) in {str(tmp_path / path) for path, _ in listed}
    assert losses(tmp_path / "pipeline") == pytest.approx(losses(tmp_path / "single"), rel=1e-5)
    # Without the flag, the first one that is met ends the run before anything is lost.
    stopped = run(tmp_path, "pretrain.py", *flags[:-2], *SINGLE[:-1], "stopped", code=2)
    assert re.search(r"^error: cannot read image data/\S+\.png: the file is empty$", stopped, re.M)
    assert "Traceback" not in stopped


@pytest.mark.slow
@pytest.mark.pipeline
def test_several_labels_an_image_are_learned_the_same_on_one_device_and_in_a_pipeline(tmp_path: Path) -> None:
    images_of(tmp_path / "images", 40)
    draw = random.Random(0)
    for name, numbers in (("train.csv", range(30)), ("val.csv", range(30, 40))):
        with open(tmp_path / name, "w", newline="") as file:
            rows = [[f"images/{number:03}.png", *(draw.randint(0, 1) for _ in range(3))] for number in numbers]
            csv.writer(file).writerows([["image", "red", "green", "blue"], *rows])
    flags = [*SMALL, "--dataset", "csv", "--dataset-path", ".", "--num-labels", "3", "--loss", "SigmoidCELoss"]
    for where in (SINGLE, PIPELINE):
        output = run(tmp_path, "pretrain.py", *flags, *where)
        assert re.search(r"Valid Accuracy: \d\.\d+ All labels right: \d\.\d+ AUC: \d\.\d+ \(10 samples", output)
        assert re.search(r"^  best AUC + \d", output, re.M), output
    assert losses(tmp_path / "pipeline") == pytest.approx(losses(tmp_path / "single"), rel=1e-5)
    assert json.loads((tmp_path / "single/latest/run.json").read_text())["model"]["class_names"] == [
        "red",
        "green",
        "blue",
    ]
    validated = run(
        tmp_path, "validation.py", "--config-file", "pipeline/config.yaml", "--pretrained-checkpoint", "single/latest",
        *SINGLE[:-2],
    )  # fmt: skip
    assert "Valid All labels right:" in validated
    last = records(tmp_path / "single", "validation")[-1]
    assert f"Valid Accuracy: {last['top1']:.5f}" in validated
    wrong = run(tmp_path, "pretrain.py", *flags[:-1], "CELoss", *SINGLE, code=2)
    assert "images with several labels, which loss = CELoss cannot learn" in wrong


@pytest.mark.slow
def test_chest_xrays_are_learned_from_their_published_files(tmp_path: Path) -> None:
    images_of(tmp_path / "images", 30)
    findings = ("Effusion", "Mass|Nodule", "No Finding")
    with open(tmp_path / "Data_Entry_2017_v2020.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Follow-up #", "Patient ID"])
        writer.writerows([f"{number:03}.png", findings[number % 3], 0, number] for number in range(31))
    output = run(
        tmp_path, "finetune.py", *SMALL, "--dataset", "chest_xray", "--dataset-path", ".", "--num-labels", "15",
        "--loss", "SigmoidCELoss", "--num-channels", "1", "--pretrained-checkpoint", "", *SINGLE,
    )  # fmt: skip
    assert re.search(r"lacks 1 of the (29|2) images of a split", output)
    assert re.search(r"\([12] samples", output)  # 5 % of 31, rounded up; one may be missing
    names = json.loads((tmp_path / "single/latest/run.json").read_text())["model"]["class_names"]
    assert (names[0], names[-1], len(names)) == ("Atelectasis", "No Finding", 15)


@pytest.mark.slow
def test_a_checkpoint_of_other_classes_says_so(tmp_path: Path) -> None:
    write_images(tmp_path / "animals", {"train/ant": 9, "train/bee": 9})
    write_images(tmp_path / "plants", {"train/ant": 2, "train/oak": 2, "val/ant": 2, "val/oak": 2})
    flags = [*SMALL, "--num-labels", "2", "--epochs", "1"]
    run(tmp_path, "pretrain.py", *flags, "--dataset-path", "animals", *SINGLE)
    validate = ["--pretrained-checkpoint", "single", "--runtime", "single", "--device", "cpu"]
    output = run(tmp_path, "validation.py", *flags, "--dataset-path", "plants", *validate)
    assert "the checkpoint was trained on other classes: 1 differ, first label 1, bee there, oak in the data" in output


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    write_images(tmp_path / "data", {"train/bee": 9, "train/cat": 9})
    flags = [*SMALL, "--dataset-path", "data", "--num-labels", "3", *SINGLE]
    run(tmp_path, "pretrain.py", *flags, "--epochs", "1")
    write_images(tmp_path / "data", {"train/ant": 1})  # as many steps an epoch, other labels
    output = run(tmp_path, "pretrain.py", *flags, "--resume", code=2)
    assert "was trained on other data: 18 images then, 19 now, or other labels" in output
    assert "--pretrained-checkpoint" in output
