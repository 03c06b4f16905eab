"""A run that was stopped and resumed ends with the weights of one that was not, bit for bit, on every runtime."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import pytest
import yaml
from safetensors.torch import load_file

import launch
import pretrain
from benchmarks import kill_and_resume
from tests import warm

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
    pytest.param(
        {"runtime": "pipeline", "layers_per_ipu": [1, 1]}, id="pipeline", marks=[pytest.mark.slow, pytest.mark.pipeline]
    ),
]


def train(folder: Path, output: str, keys: Dict[str, Any], *flags: str) -> subprocess.Popen[str]:
    """Starts `pretrain.py` in `folder`."""
    config = folder / "configs.yaml"
    config.write_text(yaml.safe_dump({"tiny": {**CONFIG, **keys}}))
    command = [sys.executable, str(ROOT / "pretrain.py"), "--config", "tiny", "--checkpoint-output-dir", output, *flags]
    return warm.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Callable[..., str]:
    """Runs `pretrain.py` in `tmp_path` without starting a Python for it; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(output: str, keys: Dict[str, Any], *flags: str, code: int = 0) -> str:
        capfd.readouterr()
        Path("configs.yaml").write_text(yaml.safe_dump({"tiny": {**CONFIG, "runtime": "single", **keys}}))
        ended = launch.run("pretrain", pretrain.main, ["--config", "tiny", "--checkpoint-output-dir", output, *flags])
        printed = "".join(capfd.readouterr())
        assert ended == code, printed
        return printed

    return run


@pytest.fixture(scope="module")
def whole_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `run_here` that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(train(folder, "whole", {"runtime": "single"}))
    return folder / "whole"


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
    shutil.copytree(tmp_path / "whole", tmp_path / "halves", symlinks=True)
    # What a crash after step 7's save leaves: later steps are gone, the metrics file is ahead.
    run = tmp_path / "halves"
    for step in [path for path in run.glob("step_*") if int(path.name[5:]) > 7]:
        shutil.rmtree(step)
    output = finish(train(tmp_path, "halves", keys, "--resume"))
    assert "resumed after step 7" in output
    assert_bitwise_equal(tensors(tmp_path / "whole", 18), tensors(run, 18))
    assert logged_steps(run) == list(range(1, 19))


@pytest.mark.parametrize("keys", RUNTIMES)
def test_ctrl_c_saves_and_resume_goes_on_bitwise(tmp_path: Path, keys: Dict[str, Any]) -> None:
    keys = {**keys, "lr_schedule": "constant"}  # which does not ask how long the run is
    finish(train(tmp_path, "whole", keys))
    process = train(tmp_path, "halves", {**keys, "epochs": 500})  # it must not end before it hears the signal
    assert process.stdout is not None
    for line in process.stdout:
        if "Step: 3/" in line:
            os.killpg(process.pid, signal.SIGINT)  # to all, as a terminal does
            break
    output = finish(process, code=130)
    assert "Stopped early (Ctrl-C)" in output
    finish(train(tmp_path, "halves", keys, "--resume"))
    assert_bitwise_equal(tensors(tmp_path / "whole", 18), tensors(tmp_path / "halves", 18))


def test_a_new_run_does_not_overwrite_an_old_one(
    tmp_path: Path, run_here: Callable[..., str], whole_here: Path
) -> None:
    shutil.copytree(whole_here, tmp_path / "run", symlinks=True)
    output = run_here("run", {}, code=2)
    assert "already holds a run" in output
    assert "--resume" in output
    assert "Traceback" not in output


def test_a_damaged_step_is_named_and_the_one_before_offered_and_resumed(
    tmp_path: Path, run_here: Callable[..., str], whole_here: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole_here, run, symlinks=True)
    part = run / "step_18" / "optimizer-00001-of-00001.safetensors"
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (run / "step_14" / "run.json").write_text("{")
    output = run_here("run", {}, "--resume", code=2)
    assert "optimizer-00001-of-00001.safetensors is damaged" in output
    assert "The newest good step before it is 7: go on from there with --resume --resume-step 7." in output
    output = run_here("run", {}, "--resume", "--resume-step", "7")
    assert "resumed after step 7" in output
    (aside,) = run.glob("set_aside-*")
    assert f"the steps after it are in {aside.relative_to(tmp_path)} now" in output
    assert (aside / "step_18" / part.name).is_file()
    assert_bitwise_equal(tensors(whole_here, 18), tensors(run, 18))
    assert logged_steps(run) == list(range(1, 19))


def test_no_good_step_at_all_is_said(tmp_path: Path, run_here: Callable[..., str]) -> None:
    run_here("run", {"epochs": 1, "checkpoint_save_steps": 100, "keep_best": False})
    (tmp_path / "run" / "step_9" / "model.safetensors.index.json").unlink()
    output = run_here("run", {}, "--resume", code=2)
    assert "model.safetensors.index.json cannot be read (No such file or directory)" in output
    assert "No step before it is good: start anew." in output


def test_what_may_not_change_is_named_and_what_may_is_told(tmp_path: Path, run_here: Callable[..., str]) -> None:
    keys = {"epochs": 1}
    run_here("run", keys)
    output = run_here("run", {**keys, "hidden_size": 32, "num_labels": 12}, "--resume", code=2)
    assert "was trained with hidden_size = 16, num_labels = 10; now hidden_size = 32, num_labels = 12." in output
    assert "finetune.py --pretrained-checkpoint run" in output
    other = {"epochs": 2, "learning_rate": 0.001}
    output = run_here("run", other, "--resume")
    assert "resumed with other keys: epochs 1 -> 2, learning_rate 0.003 -> 0.001\n" in output
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["tiny"]["learning_rate"] == 0.001


def test_another_batch_goes_on_at_the_same_image_of_the_epoch(tmp_path: Path, run_here: Callable[..., str]) -> None:
    keys = {"warmup_steps": 0}
    run_here("run", {**keys, "epochs": 1})  # 9 steps of 144 images
    for step in [path for path in (tmp_path / "run").glob("step_*") if path.name != "step_7"]:
        shutil.rmtree(step)
    output = run_here("run", {**keys, "epochs": 2, "gradient_accumulation": 8}, "--resume")
    # 7 x 144 = 1,008 images were seen; 4 steps of 288 are 1,152. An epoch has 4 such steps: the second one begins.
    assert (
        "host steps of 288 images, 144 before: epoch 1 goes on after 1,152 of its images, where it was after 1,008"
        in output
    )
    assert logged_steps(tmp_path / "run") == list(range(1, 12))  # 7, and the 4 of the second epoch
    assert "Epoch: 2.00/2.00 Step: 11/11" in output
    details = json.loads((tmp_path / "run" / "latest" / "run.json").read_text())
    assert (details["step"], details["steps_per_epoch"], details["shift"]) == (11, 4, 3)


def learning_rates(run: Path) -> List[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["learning_rate"] for line in lines if line["event"] == "step"]


def test_the_schedule_goes_by_epochs_through_a_change_of_the_batch(
    tmp_path: Path, run_here: Callable[..., str]
) -> None:
    keys = {"warmup_steps": 0, "lr_schedule": "linear", "learning_rate": 1.0, "optimizer": "SGD", "max_grad_norm": 1e-6}
    run_here("run", {**keys, "epochs": 2}, "--training-steps", "9")  # an epoch; as if the run had been stopped there
    run_here("run", {**keys, "epochs": 2, "gradient_accumulation": 8}, "--resume")
    half = learning_rates(tmp_path / "run")[9:]
    assert half == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_a_scale_that_is_no_longer_automatic_is_the_config_s(tmp_path: Path, run_here: Callable[..., str]) -> None:
    keys = {"precision": "16.16", "auto_loss_scaling": True, "epochs": 1}
    run_here("run", keys)
    output = run_here("run", {**keys, "auto_loss_scaling": False, "loss_scaling": 4.0, "epochs": 2}, "--resume")
    scales = [line.partition("Loss scale: ")[2] for line in output.splitlines() if " Step: " in line]
    assert set(scales) == {"4"}


def test_a_copied_run_whose_links_have_become_folders_goes_on(
    tmp_path: Path, run_here: Callable[..., str], whole_here: Path
) -> None:
    shutil.copytree(whole_here, tmp_path / "run")  # follows links
    assert not (tmp_path / "run" / "latest").is_symlink()
    run_here("run", {}, "--resume", "--resume-step", "7")
    assert (tmp_path / "run" / "latest").resolve().name == "step_18"
    assert_bitwise_equal(tensors(whole_here, 18), tensors(tmp_path / "run", 18))


def test_an_incomplete_step_is_not_taken_for_one(
    tmp_path: Path, run_here: Callable[..., str], whole_here: Path
) -> None:
    shutil.copytree(whole_here, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "step_18" / "run.json").unlink()
    output = run_here("run", {}, "--resume")
    assert "resumed after step 14" in output
    assert (tmp_path / "run" / "latest" / "run.json").is_file()
    assert len(list((tmp_path / "run").glob("set_aside-*/step_18"))) == 1


def test_a_folder_with_steps_is_no_place_for_a_new_run(
    tmp_path: Path, run_here: Callable[..., str], whole_here: Path
) -> None:
    shutil.copytree(whole_here, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "config.yaml").unlink()
    assert "already holds a run" in run_here("run", {}, code=2)


def test_resuming_needs_a_folder(run_here: Callable[..., str]) -> None:
    assert 'checkpoint_output_dir is ""' in run_here("", {}, "--resume", code=2)


@pytest.mark.slow
@pytest.mark.pipeline
def test_sigterm_to_every_process_saves_as_a_scheduler_needs_it(tmp_path: Path) -> None:
    process = train(tmp_path, "run", {"runtime": "pipeline", "layers_per_ipu": [1, 1], "epochs": 200})
    assert process.stdout is not None
    for line in process.stdout:
        if "Step: 3/" in line:
            break
    for number in processes_of_session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM)
    output = finish(process, code=143)
    assert "Stopped early (SIGTERM)" in output
    assert (tmp_path / "run" / "latest" / "run.json").is_file()


def processes_of_session(session: int) -> List[int]:
    """The processes of a session: of the fields behind a process's name, which may hold anything, the fourth says which."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(path.parent.name))
    return found


def test_early_stopping_counts_on_over_a_resume(tmp_path: Path, run_here: Callable[..., str]) -> None:
    # A learning rate too small to learn anything: the first validation stays the best.
    keys = {"learning_rate": 1e-12, "epochs": 9, "early_stopping": 3, "checkpoint_save_steps": 9}
    run_here("whole", keys)
    run_here("halves", {**keys, "epochs": 2})
    output = run_here("halves", keys, "--resume")
    for run in ("whole", "halves"):
        assert logged_steps(tmp_path / run) == list(range(1, 37))  # 4 epochs of 9 steps: the best one and three more
        assert (tmp_path / run / "best").resolve().name == "step_9"
    assert "stopped early: 3 validations in a row were not better than the best" in output
    output = run_here("halves", keys, "--resume")
    assert logged_steps(tmp_path / "halves") == list(range(1, 37))
    assert "stopped early" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--kills 2 --steps 16 --runtime single --precision bf16.16",
        pytest.param(
            "--kills 1 --steps 8 --runtime pipeline --precision 16.16 --keys auto_loss_scaling=true",
            marks=pytest.mark.pipeline,
        ),
    ],
)
def test_a_run_that_is_killed_in_the_middle_of_saves_ends_with_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, flags: str
) -> None:
    starter = SimpleNamespace(Popen=warm.Popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(kill_and_resume, "subprocess", starter)
    assert kill_and_resume.main(["--within", "0.5", *flags.split()]) == 0


def test_a_link_to_a_best_step_that_is_set_aside_does_not_dangle(tmp_path: Path, run_here: Callable[..., str]) -> None:
    keys = {"checkpoint_save_steps": 7}
    run_here("run", keys)
    run = tmp_path / "run"
    assert (run / "best").resolve().name in ("step_9", "step_18")
    shutil.rmtree(run / "step_9", ignore_errors=True)
    output = run_here("run", keys, "--resume", "--resume-step", "14", "--training-steps", "15")
    assert "the best step until then, 9, is no longer there" in output
    assert not (run / "best").is_symlink() or (run / "best").exists()
