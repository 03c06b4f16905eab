"""A run that was stopped and resumed ends with the weights of one that was not, bit for bit, on every runtime."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent

# 20 images a step: 10 steps an epoch. Dropout, augmentation, mixup and CutMix on: nothing random may depend on where a run began.
CONFIG: Dict[str, Any] = {
    "dataset": "digits",
    "image_size": 8,
    "num_channels": 1,
    "patches_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_dim": 32,
    "num_labels": 10,
    "micro_batch_size": 36,
    "gradient_accumulation": 4,
    "validation_split": 0.2,
    "train_crop_scale": None,
    "rotation": 10,
    "mixup": True,
    "alpha": 0.5,
    "cutmix": True,
    "mix_mode": "sample",
    "hidden_dropout_prob": 0.1,
    "drop_path_rate": 0.1,
    "optimizer": "AdamW",
    "learning_rate": 0.003,
    "lr_schedule": "cosine",
    "warmup_steps": 3,
    "precision": "32.32",
    "device": "cpu",
    "threads_per_process": 1,
    "epochs": 2,
    "checkpoint_save_steps": 7,
}
RUNTIMES = [
    pytest.param({"runtime": "single"}, id="single"),
    pytest.param({"runtime": "pipeline", "layers_per_ipu": [1, 1]}, id="pipeline", marks=pytest.mark.slow),
]


def train(folder: Path, output: str, keys: Dict[str, Any], *flags: str) -> subprocess.Popen[str]:
    """Starts `pretrain.py` in `folder`."""
    config = folder / "configs.yaml"
    config.write_text(yaml.safe_dump({"tiny": {**CONFIG, **keys}}))
    command = [sys.executable, str(ROOT / "pretrain.py"), "--config", "tiny", "--checkpoint-output-dir", output, *flags]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    return output


def tensors(run: Path, step: int) -> Dict[str, Any]:
    files = sorted((run / f"step_{step}").glob("*.safetensors"))
    assert files, f"nothing in {run}/step_{step}"
    return {f"{path.name.split('-')[0]}.{name}": value for path in files for name, value in load_file(path).items()}


def assert_bitwise_equal(first: Dict[str, Any], second: Dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not first[name].equal(second[name])]
    assert not different


def logged_steps(run: Path) -> List[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "learning_rate" in line]


@pytest.mark.parametrize("keys", RUNTIMES)
def test_resume_in_the_middle_of_an_epoch_is_bitwise_exact(tmp_path: Path, keys: Dict[str, Any]) -> None:
    finish(train(tmp_path, "whole", keys))
    finish(train(tmp_path, "halves", keys))
    # What a crash after step 7's save leaves: later steps are gone, the metrics file is ahead.
    run = tmp_path / "halves"
    for step in [path for path in run.glob("step_*") if int(path.name[5:]) > 7]:
        subprocess.run(["rm", "-r", str(step)], check=True)
    output = finish(train(tmp_path, "halves", keys, "--resume"))
    assert "resumed after step 7" in output
    assert_bitwise_equal(tensors(tmp_path / "whole", 18), tensors(run, 18))
    assert logged_steps(run) == list(range(1, 19))


@pytest.mark.parametrize("keys", RUNTIMES)
def test_ctrl_c_saves_and_resume_goes_on_bitwise(tmp_path: Path, keys: Dict[str, Any]) -> None:
    finish(train(tmp_path, "whole", keys))
    process = train(tmp_path, "halves", keys)
    assert process.stdout is not None
    for line in process.stdout:
        if "Step: 3/" in line:
            os.killpg(process.pid, signal.SIGINT)  # to all, as a terminal does
            break
    output = finish(process, code=130)
    assert "Stopped early (Ctrl-C)" in output
    finish(train(tmp_path, "halves", keys, "--resume"))
    assert_bitwise_equal(tensors(tmp_path / "whole", 18), tensors(tmp_path / "halves", 18))


@pytest.mark.slow
def test_a_checkpoint_of_two_stages_resumes_on_one_device(tmp_path: Path) -> None:
    pipeline = {"runtime": "pipeline", "layers_per_ipu": [1, 1]}
    finish(train(tmp_path, "run", {**pipeline, "epochs": 1}))
    finish(train(tmp_path, "run", {"runtime": "single"}, "--resume"))
    finish(train(tmp_path, "whole", {"runtime": "single"}))
    whole, resumed = tensors(tmp_path / "whole", 18), tensors(tmp_path / "run", 18)
    assert whole.keys() == resumed.keys()


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    finish(train(tmp_path, "run", {"runtime": "single", "epochs": 1}))
    output = finish(train(tmp_path, "run", {"runtime": "single"}), code=2)
    assert "already holds a run" in output
    assert "--resume" in output
    assert "Traceback" not in output
