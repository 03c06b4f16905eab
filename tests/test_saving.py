"""Saving beside training: what is written is what was there, whatever training does meanwhile and whatever the disk does."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from safetensors.torch import load_file
from torch import Tensor

import step_writer
from checkpoint import Progress, check_whole
from errors import UserError
from placement import place_pipeline, place_single
from run_folder import saved_steps
from runtime.single import SingleRuntime
from saving import Saver
from tests import warm
from tests.processes import run_processes
from tests.small import host_batch, small_config
from weights.card import card_of
from weights.tensor_files import write_part

ROOT = Path(__file__).resolve().parent.parent


class Training:
    """A run of the tiny model that is only stepped and saved."""

    def __init__(self, tmp_path: Path, **keys: Any) -> None:
        self.config = small_config(tmp_path, **keys)
        self.runtime = SingleRuntime(self.config, place_single(self.config), num_cores=1)
        self.folder = tmp_path / "run"
        self.folder.mkdir(exist_ok=True)
        self.notes: List[str] = []
        self.saver = Saver(self.folder, self.runtime, self.config, card_of(self.config), self.notes.append)
        self.progress = Progress(0, 10, 8)

    def step(self) -> None:
        self.runtime.train_step(host_batch(self.config, self.runtime.share), 0.1, self.progress.step)
        self.progress.step += 1

    def weights(self) -> Dict[str, Tensor]:
        return {name: value.clone() for name, value in self.runtime.weights()[0].items()}

    def saved_weights(self, step: int) -> Dict[str, Tensor]:
        return load_file(self.folder / f"step_{step}" / "model-00001-of-00001.safetensors")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written before it is set."""
    event = threading.Event()

    def waiting(path: Path, tensors: Any) -> None:
        assert event.wait(20)
        write_part(path, tensors)

    monkeypatch.setattr(step_writer, "write_part", waiting)
    return event


def test_training_goes_on_while_a_step_is_written_and_leaves_it_as_it_was(
    tmp_path: Path, gate: threading.Event
) -> None:
    training = Training(tmp_path)
    training.step()
    expected = training.weights()
    training.saver.save(training.progress)
    training.step()
    assert training.saver.poll() == []
    assert saved_steps(training.folder) == []
    gate.set()
    training.saver.wait()
    (record,) = training.saver.poll()
    assert record.step == 1
    assert record.num_bytes == sum(path.stat().st_size for path in (training.folder / "step_1").glob("*safetensors*"))
    assert all(value.equal(expected[name]) for name, value in training.saved_weights(1).items())
    assert not training.saved_weights(1)["head.weight"].equal(training.weights()["head.weight"])
    check_whole(training.folder / "step_1")


def test_a_save_waits_for_the_one_before(tmp_path: Path, gate: threading.Event) -> None:
    training = Training(tmp_path)
    weights = []
    for _ in range(2):
        training.step()
        weights.append(training.weights())
        threading.Timer(0.2, gate.set).start()
        training.saver.save(training.progress)
    training.saver.wait()
    assert [record.step for record in training.saver.poll()] == [1, 2]
    for step, expected in enumerate(weights, 1):
        assert all(value.equal(expected[name]) for name, value in training.saved_weights(step).items())


def test_in_the_foreground_the_step_is_there_at_once_with_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for background in (True, False):
        (tmp_path / str(background)).mkdir()
        training = Training(tmp_path / str(background), background_save=background)
        training.step()
        training.saver.save(training.progress)
        assert background or saved_steps(training.folder)
        training.saver.wait()
        contents.append([path.read_bytes() for path in sorted((training.folder / "step_1").iterdir())])
    assert contents[0] == contents[1]


def no_space(path: Path, tensors: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_stops_the_run_and_leaves_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    training.saver.save(training.progress)
    training.saver.wait()
    training.step()
    monkeypatch.setattr(step_writer, "write_part", no_space)
    training.saver.save(training.progress)
    with pytest.raises(UserError, match=r"step 1 could not be saved in .*run: No space left on device.\n.*--resume"):
        training.saver.wait()
    assert [path.name for path in saved_steps(training.folder)] == ["step_0"]
    assert (training.folder / "latest").resolve().name == "step_0"
    assert not list(training.folder.glob(".*"))


def test_a_failure_is_told_without_waiting_for_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path)
    monkeypatch.setattr(step_writer, "write_part", no_space)
    training.saver.save(training.progress)
    assert training.saver._writer is not None
    training.saver._writer.join()
    with pytest.raises(UserError, match="No space left on device"):
        training.saver.poll()


def test_with_warn_a_failure_is_told_once_and_without_waiting_for_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path, on_save_error="warn")
    monkeypatch.setattr(step_writer, "write_part", no_space)
    training.saver.save(training.progress)
    assert training.saver._writer is not None
    training.saver._writer.join()
    for _ in range(2):
        assert training.saver.poll() == []
        assert len(training.notes) == 1
    training.saver.wait()
    assert len(training.notes) == 1
    training.saver.save(training.progress)
    training.saver.wait()
    assert len(training.notes) == 2


def test_in_the_foreground_the_stall_is_all_of_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path, tensors: Any) -> None:
        time.sleep(0.2)
        write_part(path, tensors)

    monkeypatch.setattr(step_writer, "write_part", slow)
    for background in (True, False):
        (tmp_path / str(background)).mkdir()
        training = Training(tmp_path / str(background), background_save=background)
        training.saver.save(training.progress)
        training.saver.wait()
        (record,) = training.saver.poll()
        assert (record.stall_seconds < 0.2) == background  # two files
        assert record.seconds > 0.4


def test_a_step_that_is_none_makes_room(tmp_path: Path) -> None:
    training = Training(tmp_path)
    (training.folder / "step_0").mkdir()
    (training.folder / "step_0" / "model-00001-of-00001.safetensors").write_text("half")
    assert not training.saver.has(0)
    training.saver.save(training.progress)
    training.saver.wait()
    check_whole(training.folder / "step_0")
    assert [path.name for path in training.folder.glob("set_aside-*/*")] == ["step_0"]


def test_a_file_system_without_links_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(link: Path, step_folder: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(step_writer, "point", no_links)
    training = Training(tmp_path)
    training.saver.save(training.progress)
    training.saver.wait()
    assert training.saver.has(0)
    assert training.notes == ["step 0 is saved, but what comes after it failed: [Errno 1] Operation not permitted"]


def test_with_warn_the_run_goes_on_and_the_next_save_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path, on_save_error="warn")
    with monkeypatch.context() as patch:
        patch.setattr(step_writer, "write_part", no_space)
        training.saver.save(training.progress)
        training.saver.wait()
    training.step()
    training.saver.save(training.progress)
    training.saver.wait()
    what = f"step 0 could not be saved in {training.folder}: No space left on device."
    assert training.notes == [f"{what} The run goes on; what was saved before is untouched."]
    assert [path.name for path in saved_steps(training.folder)] == ["step_1"]


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.folder.rmdir()
    with pytest.raises(UserError, match="No such file or directory"):
        training.saver.save(training.progress)
    assert not training.folder.exists()


def test_with_warn_every_step_without_a_place_is_told(tmp_path: Path) -> None:
    training = Training(tmp_path, on_save_error="warn")
    training.folder.rmdir()
    for count in (1, 2):
        training.saver.save(training.progress)
        assert len(training.notes) == count


def test_what_is_no_system_error_is_told_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, tensors: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(step_writer, "write_part", broken)
    training = Training(tmp_path)
    training.saver.save(training.progress)
    with pytest.raises(UserError, match="ValueError: a bug"):
        training.saver.wait()


def test_old_steps_go_once_a_new_one_is_there(tmp_path: Path) -> None:
    training = Training(tmp_path, checkpoint_save_steps=1, keep_last=2)
    for step in range(1, 6):
        training.step()
        training.saver.save(training.progress, is_best=step == 2, only_best=step == 2)
    training.saver.wait()
    assert [path.name for path in saved_steps(training.folder)] == ["step_2", "step_4", "step_5"]
    assert sorted(path.name for path in training.folder.iterdir()) == ["best", "latest", "step_2", "step_4", "step_5"]


def test_a_step_that_is_there_is_only_linked_to(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.saver.save(training.progress)
    training.saver.wait()
    before = (training.folder / "step_0" / "run.json").stat().st_mtime_ns
    training.saver.save(training.progress, is_best=True)
    training.saver.wait()
    assert (training.folder / "best").resolve().name == "step_0"
    assert (training.folder / "step_0" / "run.json").stat().st_mtime_ns == before


def save_in_a_pipeline(rank: int, config: Any, folder: str, failing: Optional[int]) -> Any:
    """Saves twice, the first time with one process whose disk is full. Gives errors, notes and the steps that are there."""
    from runtime.pipeline import PipelineRuntime

    runtime = PipelineRuntime(config, place_pipeline(config, 2, num_devices=1, cores=2), rank, rank)
    notes: List[str] = []
    saver = Saver(Path(folder), runtime, config, card_of(config), notes.append)
    errors = []
    if rank == failing:
        step_writer.write_part = no_space
    for step in (1, 2):
        try:
            saver.save(Progress(step, 10, 8))
            saver.wait()
        except UserError as error:
            errors.append(str(error).splitlines()[0])
        step_writer.write_part = write_part
    runtime.close()
    return errors, notes, [path.name for path in saved_steps(Path(folder))]


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("policy", ["stop", "warn"])
def test_a_process_that_cannot_write_its_part_fails_the_step_in_all(tmp_path: Path, failing: int, policy: str) -> None:
    config = small_config(tmp_path, runtime="pipeline", layers_per_ipu=[2, 2], on_save_error=policy)
    (tmp_path / "run").mkdir()
    results = run_processes(2, save_in_a_pipeline, config, str(tmp_path / "run"), failing)
    told = f"step 1 could not be saved in {tmp_path / 'run'}: No space left on device."
    for errors, notes, steps in results:
        assert steps == ["step_2"]
        assert errors == ([told] if policy == "stop" else [])
        assert [note[: len(told)] for note in notes] == ([told] if policy == "warn" else [])
    check_whole(tmp_path / "run" / "step_2")
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("policy", ["stop", "warn"])
def test_a_file_that_the_system_cuts_off_is_a_message_not_a_traceback(tmp_path: Path, policy: str) -> None:
    """A limit on the size of files stands for a disk that fills up within a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, str(ROOT / "pretrain.py"), "--config", "digits_single", "--training-steps", "2"]
    flags = ["--validation-epochs", "0", "--on-save-error", policy, "--checkpoint-output-dir", str(tmp_path / "run")]
    done = (warm.run if policy == "warn" else subprocess.run)(
        [*command, *flags], capture_output=True, text=True, preexec_fn=limit, timeout=120, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert "step 2 could not be saved" in output
    assert "File too large" in output
    assert ("step 2, the run's last, is not saved: its weights are lost" in output) == (policy == "warn")
    assert "Traceback" not in output
    assert not list((tmp_path / "run").glob("*step_*"))
