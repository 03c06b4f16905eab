"""The commands as a user runs them: what they print, how they end, and that they leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest

from tests import warm

ROOT = Path(__file__).resolve().parent.parent
# digits through two stages for a few steps: small enough to start many times
SHORT = ["--config", "digits", "--epochs", "0", "--training-steps", "3", "--checkpoint-output-dir", ""]


def command(script: str, *flags: str) -> List[str]:
    return [sys.executable, str(ROOT / script), *flags]


def run(folder: Path, script: str, *flags: str, code: int = 0, bare: bool = False) -> str:
    """Runs a command in `folder`, in a bare interpreter or a warm one; returns what it printed on both streams."""
    start = subprocess.run if bare else warm.run
    done = start(
        command(script, *flags), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def error_lines(output: str) -> List[str]:
    return [line for line in output.splitlines() if line.startswith("error:")]


def test_plan_prints_the_resolved_config_and_the_device_allocation(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        "plan.py",
        "--config",
        "b16_imagenet1k",
        "--runtime",
        "pipeline",
        "--replication-factor",
        "1",
        bare=True,
    )
    assert "learning_rate: 0.08" in output
    assert "Device allocation" in output
    assert "blocks 9-11, head" in output
    assert "86,567,656" in output  # ViT-B/16 with 1000 classes, as published


def test_compile_only_prints_the_plan_and_stops(tmp_path: Path) -> None:
    output = run(tmp_path, "pretrain.py", "--config", "digits", "--compile-only", bare=True)
    assert "Device allocation" in output
    assert "Step:" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.pipeline
def test_digits_trains_in_four_processes_from_any_folder_and_validates(tmp_path: Path) -> None:
    output = run(tmp_path, "pretrain.py", "--config", "digits", "--epochs", "2", bare=True)
    assert re.search(
        r"^Epoch: 2.00/2.00 Step: (\d+)/\1 Lr: .* loss: .* accuracy: .* throughput: .* samples/sec", output, re.M
    )
    assert "Valid Accuracy:" in output
    assert "(360 samples" in output
    next_command = re.search(r"next\s+(\S*python\S* \S*validation\.py .*)", output)
    assert next_command is not None
    # As it stands there, from where it was printed.
    done = subprocess.run(
        next_command.group(1), shell=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=300
    )
    validated = done.stdout
    best = re.findall(r"Valid Accuracy: *(\d+\.\d+)", output)
    assert re.findall(r"Valid Accuracy: *(\d+\.\d+)", validated) == [max(best)]
    assert "Number of samples: 360" in validated


@pytest.mark.slow
@pytest.mark.pipeline
def test_a_pipeline_checkpoint_finetunes_with_a_new_head_on_one_device(tmp_path: Path) -> None:
    run(tmp_path, "pretrain.py", *SHORT[:-1], "pretrained")
    keys = ["--runtime", "single", "--num-labels", "12", "--pretrained-checkpoint", "pretrained"]
    output = run(tmp_path, "finetune.py", *SHORT, *keys)
    assert "new head for 12 classes (the checkpoint has 10)" in output


@pytest.mark.slow
@pytest.mark.pipeline
def test_a_pipeline_of_one_process_needs_no_launcher(tmp_path: Path) -> None:
    flags = ["--runtime", "pipeline", "--num-processes", "1", "--validation-epochs", "0"]
    assert "4 stages run as 1" in run(tmp_path, "pretrain.py", *SHORT, *flags)


@pytest.mark.slow
@pytest.mark.pipeline
def test_stages_validate_with_fewer_micro_batches_a_weight_update(tmp_path: Path) -> None:
    run(tmp_path, "pretrain.py", *SHORT[:-1], "run", "--runtime", "single", "--validation-epochs", "0")
    flags = ["--gradient-accumulation", "1", "--runtime", "pipeline", "--learning-rate", "1"]
    output = run(tmp_path, "validation.py", "--config", "digits", "--pretrained-checkpoint", "run", *flags)
    assert "Number of samples: 360" in output
    assert "rank 3" in output
    assert re.search(r"does not use: learning_rate\b", output)


def test_a_python_without_the_packages_is_told_which_to_use(tmp_path: Path) -> None:
    # -S leaves the environment's packages out.
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "pretrain.py"), "--config", "digits"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "has no " in done.stderr
    assert ".venv/bin/python" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.pipeline
def test_torchrun_sets_the_world_up(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(ROOT / "pretrain.py"), *SHORT], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "4 stages run as 2" in done.stdout
    assert done.stdout.count("Step: 3/3") == 1


WRONG = [
    (["--config", "digit"], ["digit", "Did you mean 'digits'?"]),
    (["--config", "digits", "--lerning-rate", "1"], ["lerning", "learning"]),
    (["--config", "b16_imagenet1k", "--pretrained-checkpoint", "", "--dataset-path", "nowhere"], ["nowhere"]),
    (["--config", "digits", "--device", "cuda"], ["device = cuda", "--device cpu"]),
    (
        ["--config", "digits", "--num-processes", "3", "--layers-per-ipu", "2", "2", "--ipus-per-replica", "2"],
        ["3 processes"],
    ),
    (
        ["--config", "digits_single", "--pretrained-checkpoint", "google/vit-base-patch16-224-in21k"],
        ["google/vit", "hub"],
    ),
    (["--config", "digits_single", "--resume"], ["--resume finds no saved step"]),
    (["--config", "digits_single", "--num-labels", "4"], ["4", "10"]),
]


@pytest.mark.parametrize(("flags", "words"), WRONG, ids=[" ".join(flags)[:50] for flags, _ in WRONG])
def test_a_users_mistake_is_one_message_and_exit_code_2(tmp_path: Path, flags: List[str], words: List[str]) -> None:
    output = run(tmp_path, "finetune.py", *flags, code=2)
    assert len(error_lines(output)) == 1
    assert "Traceback" not in output
    for word in words:
        assert word in output


def test_fine_tuning_opens_its_data_in_a_bare_interpreter(tmp_path: Path) -> None:
    flags = ["--config", "b16_imagenet1k", "--pretrained-checkpoint", "", "--dataset-path", "nowhere"]
    assert "nowhere" in run(tmp_path, "finetune.py", *flags, code=2, bare=True)


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_worker_takes_the_rest_down_and_is_named(tmp_path: Path, victim: int) -> None:
    flags = ["--config", "digits", "--checkpoint-output-dir", "", "--epochs", "500"]
    process = warm.Popen(
        command("pretrain.py", *flags), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Step: 5/" in line:
            break
    workers = workers_of(process.pid)
    assert len(workers) == 4
    os.kill(workers[victim], signal.SIGKILL)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begun < 15
    assert process.returncode == 1
    assert f"rank {victim}, stage {victim} " in output
    assert "SIGKILL" in output
    assert not any(is_alive(pid) for pid in workers)


@pytest.mark.slow
def test_no_worker_outlives_a_killed_command(tmp_path: Path) -> None:
    flags = ["--config", "digits", "--checkpoint-output-dir", "", "--epochs", "500"]
    process = warm.Popen(
        command("pretrain.py", *flags), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Step: 3/" in line:
            break
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(pid) for pid in workers)


def workers_of(pid: int) -> List[int]:
    """Process numbers of a command's workers, in the order that they were started: grandchildren, by the fork server."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return sorted(
        int(grandchild)
        for child in children
        for grandchild in Path(f"/proc/{child}/task/{child}/children").read_text().split()
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
