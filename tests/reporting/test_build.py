"""Who listens, and that no listener can end a run. W&B is an optional package: a stand-in takes its place here."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from reporting.base import Reporter
from reporting.best_effort import BestEffort
from reporting.build import build_reporters
from reporting.records import Summary


class Settings(SimpleNamespace):
    """What a config tells about reporting."""

    def model_dump(self, mode):
        assert mode == "json"
        return dict(vars(self))


@pytest.fixture
def settings():
    names = dict.fromkeys(("wandb_run_name", "run_name", "resume_step"))
    return Settings(report=True, wandb=False, quiet=False, wandb_project_name="torch-vit", **names)


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module named wandb that notes down its calls; `fail_at` names the call that raises, `hang_at` one that hangs."""
    module = ModuleType("wandb")
    module.calls, module.fail_at, module.hang_at = [], None, None
    module.failure, module.released = RuntimeError("no network"), threading.Event()

    def call(name):
        def record(*args, **kwargs):
            module.calls.append((name, args, kwargs))
            if module.fail_at == name:
                raise module.failure
            if module.hang_at == name:
                module.released.wait(60)
            return run

        return record

    run = SimpleNamespace(
        log=call("log"), finish=call("finish"), summary={}, url="https://wandb.example/run", offline=False
    )
    module.run, module.init, module.Settings = run, call("init"), dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def tell_all(reporters, step_record, validation_record):
    """A short run, told to every reporter."""
    for reporter in reporters:
        reporter.step(step_record(step=1))
        reporter.step(step_record(step=2))
        reporter.validated(validation_record(step=2))
        reporter.finished(Summary(steps=2, seconds=1.0, images_per_second=10.0, best_top1=0.5, best_step=2))
        reporter.close()
        reporter.close()


def test_a_listener_that_may_fail_hears_all_that_there_is_to_hear():
    heard = [name for name, value in vars(Reporter).items() if callable(value) and not name.startswith("_")]
    assert [name for name in heard if name not in vars(BestEffort)] == []


def test_run_folder_gets_metrics_and_events(settings, step_record, validation_record, tmp_path):
    folder = tmp_path / "runs" / "a"
    tell_all(build_reporters(settings, str(folder), 2, 0), step_record, validation_record)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("run_folder", [None, ""])
def test_without_a_run_folder_no_file_is_written(
    settings, step_record, validation_record, run_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tell_all(build_reporters(settings, run_folder, 2, 0), step_record, validation_record)
    assert list(tmp_path.iterdir()) == []


def test_run_goes_on_without_tensorboard(settings, step_record, validation_record, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    tell_all(build_reporters(settings, str(tmp_path), 2, 0), step_record, validation_record)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1
    assert "no TensorBoard files" in notes[0]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_run_goes_on_where_its_folder_cannot_be_written(settings, step_record, validation_record, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    tell_all(build_reporters(settings, str(tmp_path / "file" / "run"), 2, 0), step_record, validation_record)
    output = capsys.readouterr().out
    assert output.count("note: no metrics.jsonl from here on: ") == 1
    assert "Step: 2/440" in output


def test_run_goes_on_without_the_wandb_package(settings, step_record, validation_record, monkeypatch, capsys):
    settings.wandb = True
    monkeypatch.setitem(sys.modules, "wandb", None)
    tell_all(build_reporters(settings, None, 2, 0), step_record, validation_record)
    assert capsys.readouterr().out.count("note: no Weights & Biases from here on") == 1


def test_wandb_gets_the_names_that_its_users_chart(settings, step_record, validation_record, fake_wandb, capsys):
    settings.wandb, settings.wandb_run_name = True, "first try"
    tell_all(build_reporters(settings, None, 2, 0), step_record, validation_record)
    assert [name for name, _, _ in fake_wandb.calls] == ["init", "log", "log", "log", "finish"]
    start, step, _, validation, _ = fake_wandb.calls
    assert (start[2]["project"], start[2]["name"]) == ("torch-vit", "first try")
    assert start[2]["config"]["wandb_project_name"] == "torch-vit"
    assert {"LR": 0.001234, "Throughput": 123.4, "Loss": 1.234, "Accuracy": 0.912}.items() <= step[1][0].items()
    assert step[2] == {"step": 1}
    assert validation[1][0]["Total Accuracy"] == 0.990123
    assert fake_wandb.run.summary == {"Best Accuracy": 0.5, "Mean Throughput": 10.0}
    assert capsys.readouterr().out.endswith("  W&B         https://wandb.example/run\n")


@pytest.mark.parametrize("fail_at", ["init", "log", "finish"])
def test_a_wandb_failure_becomes_one_note(settings, step_record, validation_record, fake_wandb, fail_at, capsys):
    settings.wandb = True
    fake_wandb.fail_at = fail_at
    tell_all(build_reporters(settings, None, 2, 0), step_record, validation_record)
    output = capsys.readouterr().out
    assert output.count("note: no Weights & Biases from here on: RuntimeError: no network.") == 1
    assert [name for name, _, _ in fake_wandb.calls].count(fail_at) == 1


@pytest.mark.parametrize("hangs_at", ["init", "log", "finish"])
def test_a_wandb_that_hangs_is_waited_for_no_longer_than_its_limit(
    settings, step_record, validation_record, fake_wandb, hangs_at, capsys, monkeypatch
):
    monkeypatch.setattr("reporting.wandb.LIMIT_SECONDS", 0.2)
    fake_wandb.hang_at, settings.wandb = hangs_at, True
    begun = time.monotonic()
    tell_all(build_reporters(settings, None, 2, 0), step_record, validation_record)
    assert time.monotonic() - begun < 5
    fake_wandb.released.set()
    output = capsys.readouterr().out
    assert output.count("note: no Weights & Biases from here on: TimeoutError: W&B has not answered for") == 1
    assert "Done: 2 steps in 1.0 s" in output


def test_what_would_end_the_process_is_told_as_an_error(settings, step_record, validation_record, fake_wandb, capsys):
    fake_wandb.fail_at, fake_wandb.failure, settings.wandb = "init", SystemExit(1), True
    tell_all(build_reporters(settings, None, 2, 0), step_record, validation_record)
    assert "RuntimeError: SystemExit(1)" in capsys.readouterr().out


def test_wandb_is_left_alone_unless_asked_for(settings, step_record, validation_record, fake_wandb):
    tell_all(build_reporters(settings, None, 2, 0), step_record, validation_record)
    assert fake_wandb.calls == []


@pytest.mark.parametrize(("resumed_step", "asked_for", "expected"), [(0, None, None), (7, None, "k2x9"), (7, 7, None)])
def test_a_resumed_run_goes_on_in_its_wandb_run(settings, tmp_path, fake_wandb, resumed_step, asked_for, expected):
    settings.resume_step = asked_for  # W&B's steps only rise: from an older one, a new run begins
    for name in ("run-20260101_120000-a1b2", "offline-run-20260102_120000-k2x9", "latest-run"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    settings.wandb = True
    build_reporters(settings, str(tmp_path), 9, resumed_step)
    (_, _, start), *_ = fake_wandb.calls
    assert (start["id"], start["resume"]) == (expected, "allow")
