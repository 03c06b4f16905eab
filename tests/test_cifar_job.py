"""The CIFAR configs from start to finish, on digits in CIFAR's archives: held-out images judge, the test set comes last."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Callable

import pytest

import launch
import pretrain
import validation
from config import load_config
from dataset.registry import open_source
from models.architecture import architecture_of
from models.vit import build_model
from tests.cifar_digits import write_archives

# Less of everything, so that it learns in seconds: 5 tokens, 2 blocks, small steps, augmentation that suits digits.
QUICK = (
    "--device cpu --threads-per-process 1 --dataloader-workers 0 --patches-size 16 --num-hidden-layers 2 --micro-batch-size 32 "
    "--learning-rate 0.003 --horizontal-flip false --hue 0 --contrast 0 --shear 0 --rotation 5 --crop-padding 1"
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    write_archives(folder)
    return folder


def train(name: str, archives: Path, run: Path, flags: str, capfd: Any) -> str:
    """What `pretrain.py` prints."""
    given = f"--config {name} --dataset-path {archives} --checkpoint-output-dir {run} {QUICK} {flags}"
    assert launch.run("pretrain", pretrain.main, given.split()) == 0
    return capfd.readouterr().out


def test_accuracy(printed: str, capfd: Any) -> float:
    """Follows the run's `next` line; gives the accuracy that it prints for the 360 test images."""
    flags = shlex.split(re.search(r"^  next +(.*)$", printed, re.M).group(1))[2:]  # type: ignore[union-attr]
    assert launch.run("validation", validation.main, flags) == 0
    found = capfd.readouterr().out
    assert "Number of samples: 360" in found
    return float(re.search(r"Valid Accuracy: *(\S+)", found).group(1))  # type: ignore[union-attr]


test_accuracy.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_small_config_learns_digits_and_its_next_line_evaluates_the_test_set(
    archives: Path, tmp_path: Path, capfd: Any
) -> None:
    printed = train("cifar10_small", archives, tmp_path / "run", "--epochs 4", capfd)
    assert "validated on 144 of the training images, held out; the test set waits" in printed
    assert "(144 samples, " in printed and "restore" in printed
    assert test_accuracy(printed, capfd) >= 0.8


def test_hundred_fine_labels_are_told_apart(archives: Path, tmp_path: Path, capfd: Any) -> None:
    printed = train("cifar100_small", archives, tmp_path / "run", "--epochs 2", capfd)
    assert test_accuracy(printed, capfd) >= 0.08  # chance is 1 %: after two epochs it has seen the ten inks


@pytest.mark.parametrize(
    ("name", "millions", "share"),
    [("cifar10_small", 0.4, 0.1), ("cifar100_small", 0.4, 0.1), ("cifar10_strong", 2.7, 0.0)],
)
def test_configs_have_the_sizes_that_they_state(name: str, millions: float, share: float) -> None:
    config = load_config("pretrain", ["--config", name])
    model = build_model(architecture_of(config), 0)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    assert config.validation_split == share


@pytest.fixture
def labels_of(archives: Path) -> Callable[..., Any]:
    def read(split: str, *flags: str) -> Any:
        config = load_config("pretrain", ["--config", "cifar10_small", "--dataset-path", str(archives), *flags])
        return open_source(config, split).labels  # type: ignore[union-attr]

    return read


def test_the_held_out_share_comes_from_the_training_images_and_leaves_the_test_set_alone(
    labels_of: Callable[..., Any],
) -> None:
    whole, test = (labels_of(split, "--validation-split", "0") for split in ("train", "validation"))
    train_part, held_out = labels_of("train"), labels_of("validation")
    assert (len(whole), len(test), len(train_part), len(held_out)) == (1437, 360, 1293, 144)
    assert sorted([*train_part, *held_out]) == sorted(whole)


def test_a_run_that_the_test_set_would_stop_says_so(archives: Path, tmp_path: Path, capfd: Any) -> None:
    printed = train("cifar10_small", archives, tmp_path / "run", "--validation-split 0 --training-steps 1", capfd)
    assert "the test set decides when to stop" in printed
    assert "--validation-split 0\n" not in printed  # the next line has nothing to leave out
