"""A run starts from another run's folder, or from any format that it was converted to, in one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_commands import run

SHORT = ["--config", "digits_single", "--epochs", "0", "--training-steps", "2"]


@pytest.mark.slow
def test_own_pretraining_is_fine_tuned_on_larger_images_of_other_classes(tmp_path: Path) -> None:
    run(tmp_path, "pretrain.py", *SHORT, "--checkpoint-output-dir", "first", "--representation-size", "32")
    flags = [*SHORT, "--checkpoint-output-dir", "", "--image-size", "16", "--num-labels", "12"]
    output = run(tmp_path, "finetune.py", *flags, "--pretrained-checkpoint", "first")
    assert "new head for 12 classes (the checkpoint has 10)" in output
    assert "position embeddings resized from 4x4 to 8x8 patches (bicubic)" in output
    assert "representation layer of the checkpoint left out" in output


@pytest.mark.slow
@pytest.mark.parametrize(("target", "to"), [("hf", "huggingface"), ("timm", "timm"), ("m.safetensors", "timm")])
def test_what_a_run_was_converted_to_validates_as_the_run_itself(tmp_path: Path, target: str, to: str) -> None:
    run(tmp_path, "pretrain.py", *SHORT, "--checkpoint-output-dir", "first", "--training-steps", "20")
    run(tmp_path, "convert.py", "first", target, "--to", to)
    results = []
    for checkpoint in ("first", target):
        flags = ["--config-file", "first/config.yaml", "--pretrained-checkpoint", checkpoint]
        lines = run(tmp_path, "validation.py", *flags).splitlines()
        results.append([line for line in lines if "Valid" in line])
    assert results[0]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_run_keeps_its_checkpoint_s_epsilon_through_a_resume_by_the_same_command(tmp_path: Path) -> None:
    run(tmp_path, "pretrain.py", *SHORT, "--checkpoint-output-dir", "first", "--layer-norm-eps", "1e-12")
    flags = [*SHORT, "--checkpoint-output-dir", "second", "--pretrained-checkpoint", "first"]
    assert "layer_norm_eps = 1e-12, as in the checkpoint" in run(tmp_path, "finetune.py", *flags)
    flags = [*flags, "--resume", "--training-steps", "4"]
    assert "layer_norm_eps" not in run(tmp_path, "finetune.py", *flags)
    assert '"layer_norm_eps": 1e-12' in (tmp_path / "second/latest/run.json").read_text()
