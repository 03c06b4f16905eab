"""A run starts from another run's folder, or from any format that it was converted to, in one command."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Callable

import pytest

import launch

SHORT = ["--config", "digits_single", "--epochs", "0", "--training-steps", "2"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., str]:
    """Runs a command in `tmp_path` without starting a Python for it; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def here(command: str, *arguments: str) -> str:
        capfd.readouterr()
        main = importlib.import_module(command).main
        if command == "convert":
            code = launch.guarded(lambda: main(list(arguments)))
        else:
            code = launch.run(command, main, list(arguments))
        printed = "".join(capfd.readouterr())
        assert code == 0, printed
        return printed

    return here


def test_own_pretraining_is_fine_tuned_on_larger_images_of_other_classes(run: Callable[..., str]) -> None:
    run("pretrain", *SHORT, "--checkpoint-output-dir", "first", "--representation-size", "32")
    flags = [*SHORT, "--checkpoint-output-dir", "", "--image-size", "16", "--num-labels", "12"]
    output = run("finetune", *flags, "--pretrained-checkpoint", "first")
    assert "new head for 12 classes (the checkpoint has 10)" in output
    assert "position embeddings resized from 4x4 to 8x8 patches (bicubic)" in output
    assert "representation layer of the checkpoint left out" in output


def test_what_a_run_was_converted_to_validates_as_the_run_itself(run: Callable[..., str]) -> None:
    run("pretrain", *SHORT, "--checkpoint-output-dir", "first", "--training-steps", "20")
    results = []
    for checkpoint, to in (("first", None), ("hf", "huggingface"), ("timm", "timm"), ("m.safetensors", "timm")):
        if to is not None:
            run("convert", "first", checkpoint, "--to", to)
        flags = ["--config-file", "first/config.yaml", "--pretrained-checkpoint", checkpoint]
        results.append([line.split("(")[0] for line in run("validation", *flags).splitlines() if "Valid" in line])
    assert results[0]
    assert results == [results[0]] * 4


def test_a_run_keeps_its_checkpoint_s_epsilon_through_a_resume_by_the_same_command(
    tmp_path: Path, run: Callable[..., str]
) -> None:
    run("pretrain", *SHORT, "--checkpoint-output-dir", "first", "--layer-norm-eps", "1e-12")
    flags = [*SHORT, "--checkpoint-output-dir", "second", "--pretrained-checkpoint", "first"]
    assert "layer_norm_eps = 1e-12, as in the checkpoint" in run("finetune", *flags)
    assert "layer_norm_eps" not in run("finetune", *flags, "--resume", "--training-steps", "4")
    assert '"layer_norm_eps": 1e-12' in (tmp_path / "second/latest/run.json").read_text()
