"""W&B itself, offline; what it wrote is read back from its file. Who wants to run these: `pip install wandb`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reporting import pictures
from reporting.records import Summary
from reporting.wandb import WandbReporter
from tests.reporting import wandb_file
from tests.reporting.findings import CONFUSION, findings, multi_label_findings, run_record, views

wandb = pytest.importorskip("wandb", reason="wandb is not installed (the run goes on without it: test_build.py)")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()  # it reads its variables once


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return path


def test_wandb_keeps_figures_pictures_and_areas_offline(step_record, validation_record, tmp_path):
    told = []
    reporter = WandbReporter("torch-vit", "first try", {"learning_rate": 0.5}, str(tmp_path), note=told.append)
    reporter.began(run_record())
    for step in (1, 2):
        reporter.step(step_record(step=step))
    reporter.validated(validation_record(step=2))
    reporter.found(findings(step=2))
    reporter.found(multi_label_findings(step=2))
    reporter.viewed(views(step=2))
    reporter.finished(Summary(steps=2, seconds=1.0, best_top1=0.5))
    reporter.close()
    wandb.teardown()  # its service writes the file's end
    found = wandb_file.records(file_of(tmp_path))
    first, second = wandb_file.history(found)
    assert (first["_step"], first["Loss"], first["LR"]) == (1, 1.234, 0.001234)
    assert (second["_step"], second["Total Accuracy"], second["Valid AUC Hernia"]) == (2, 0.990123, 0.75)
    assert [second[f"{name}.count"] for name in ("Mistakes", "Attention", "Position Similarity")] == [2, 1, 1]
    assert second["Mistakes.captions"][1] == "two taken for\nzero (90 %)\nb.png"
    (saved,) = file_of(tmp_path).parent.glob("files/media/images/Confusion_*.png")
    drawn = pictures.confusion_picture(CONFUSION, ("zero", "one", "two"))
    np.testing.assert_array_equal(np.asarray(Image.open(saved).convert("RGB")), drawn)
    assert wandb_file.settings(found)["learning_rate"] == 0.5
    assert wandb_file.summary(found)["Best Accuracy"] == 0.5
    assert told == [f"  W&B         offline; to send it: wandb sync {file_of(tmp_path).parent}"]


def test_without_a_key_the_run_is_told_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key may be kept
    with pytest.raises(Exception, match="key"):
        WandbReporter("torch-vit", None, {}, str(tmp_path))


@pytest.mark.slow
def test_a_run_reports_to_wandb_offline(tmp_path):
    flags = [
        "--config",
        "digits_single",
        "--epochs",
        "2",
        "--wandb",
        "--wandb-run-name",
        "digits",
        "--validation-epochs",
        "1",
    ]
    command = [sys.executable, "pretrain.py", *flags, "--checkpoint-output-dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"wandb sync {file_of(tmp_path / 'run').parent}\n" in ended.stdout
    found = wandb_file.records(file_of(tmp_path / "run"))
    steps = wandb_file.history(found)
    assert [step["_step"] for step in steps] == list(range(1, 45))
    assert [step["_step"] for step in steps if "Total Accuracy" in step] == [22, 44]
    assert wandb_file.settings(found)["config"] == "digits_single"
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("torch-vit", "digits")
