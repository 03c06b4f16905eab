"""plan.py as a user runs it: what it prints and draws, and how it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import List
from xml.etree import ElementTree

import pytest

import plan
from config import load_config
from errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# The reference application's, but for its `defaults`.
REFERENCE = (
    *("b16_cifar10", "b16_cifar10_valid", "b16_imagenet1k", "b16_imagenet1k_ALS", "b16_imagenet1k_valid"),
    *("b16_in1k_pretrain", "b16_in1k_pretrain_lamb", "b16_in1k_pretrain_valid"),
)


def printed(capsys: pytest.CaptureFixture, *flags: str) -> str:
    assert plan.main(list(flags)) == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize("machine", ["pod16", "pod16-gc200", "pod64", "h200x8"])
@pytest.mark.parametrize("name", REFERENCE)
def test_every_reference_config_has_a_summary_on_every_machine(name, machine, capsys) -> None:
    line = printed(capsys, "--config", name, "--machine", machine, "--summary").strip()
    assert "\n" not in line
    assert line.startswith(f"{name}: ")
    for words in (" updates, bubble ", " MiB, predicted ", " images/s"):
        assert words in line
    assert (" no updates" in line) == name.endswith("_valid")


def test_the_resolved_config_and_the_allocation_come_first(capsys) -> None:
    output = printed(capsys, "--config", "b16_imagenet1k", "--machine", "pod16")
    parts = ["learning_rate: 0.08", "Device allocation", "Devices: pod16", "Memory of a device of 900 MB", "Traffic"]
    parts += ["Time of a micro-batch", "published: 7,319", "b16_imagenet1k: 16 IPUs"]
    positions = [output.index(part) for part in parts]
    assert positions == sorted(positions)


def test_this_machine_is_planned_for_without_measuring_it(capsys) -> None:
    output = printed(capsys, "--config", "digits", "--device", "cpu")
    assert "Devices: this machine, 4 processes" in output
    assert "--machine cpu measures it" in output


def test_the_cpu_is_measured_when_asked(capsys) -> None:
    line = printed(capsys, "--config", "digits_single", "--machine", "cpu", "--summary")
    assert "predicted - images/s" not in line


def test_balance_shows_before_and_after_and_changes_nothing(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = printed(
        capsys, "--config", "b16_imagenet1k", "--machine", "pod16", "--balance", "--layers-per-ipu", "2", "4", "4", "2"
    )
    assert "Balance: the slowest stage gets 2" in output
    assert "--layers-per-ipu 3 3 3 3" in output
    assert not list(tmp_path.iterdir())


def test_balance_has_a_line_of_its_own_in_the_summary(capsys) -> None:
    flags = ["--config", "b16_imagenet1k", "--machine", "pod16", "--summary", "--balance"]
    first, last = printed(capsys, *flags, "--layers-per-ipu", "2", "4", "4", "2").splitlines()
    assert first.startswith("Balance: the slowest stage gets 2")
    assert first.endswith(": --layers-per-ipu 3 3 3 3")
    assert last.startswith("b16_imagenet1k: 16 IPUs")
    assert "has the smallest slowest stage" in printed(capsys, *flags).splitlines()[0]


def test_images_that_nobody_has_counted_make_updates_that_are_not_known(capsys) -> None:
    assert ", updates not known (the number of images is not), " in printed(capsys, "--config", "folder", "--summary")


def test_small_models_have_figures_too(capsys) -> None:
    output = printed(capsys, "--config", "digits", "--runtime", "ipu", "--machine", "POD16")
    assert "Time of a micro-batch (µs)" in output
    for nothing in ("0.00 ", " 0.0 MiB", "0.1 MiB", "0.0 ms"):
        assert nothing not in output


@pytest.mark.parametrize(
    ("schedule", "flags", "rows"),
    [
        ("gpipe", [], 4),
        ("1f1b", [], 4),
        ("interleaved", ["--layers-per-ipu", "2", "1", "2", "1", "2", "1", "2", "1", "--ipus-per-replica", "8"], 4),
    ],
)
def test_the_timeline_shows_every_pass_of_every_stage(
    tmp_path, schedule: str, flags: List[str], rows: int, capsys
) -> None:
    path = tmp_path / "out.svg"
    keys = ["--config", "generated_b16", "--machine", "h200x8", "--gradient-accumulation", "8", "--schedule", schedule]
    printed(capsys, *keys, *flags, *["--num-processes", "4"], "--summary", "--timeline", str(path))
    root = ElementTree.parse(path).getroot()
    bars = [element for element in root if element.get("stroke") == "white"]
    assert len(bars) == 2 * 8 * (8 if schedule == "interleaved" else 4)
    assert len({bar.get("y") for bar in bars}) == rows
    words = " ".join(element.text or "" for element in root)
    assert f"x 8 micro-batches, schedule {schedule}, bubble {15.8 if schedule == 'interleaved' else 27.3} %" in words
    for part in ("time in ms", "stage 0", "forward", "backward", "weight update", "idle"):
        assert part in words


def test_of_128_micro_batches_both_ends_are_drawn_and_the_rest_is_said(tmp_path, capsys) -> None:
    first, second = tmp_path / "1.svg", tmp_path / "2.svg"
    for path in (first, second):
        printed(capsys, "--config", "b16_cifar10", "--machine", "pod16", "--summary", "--timeline", str(path))
    text = first.read_text()
    assert "beginning and at the end" in text
    assert ">128</text>" in text
    assert ">64</text>" not in text
    assert text == second.read_text()


WRONG = [
    (["--machine", "pod17"], ["--machine pod17", "pod16"]),
    (["--hosts", "0"], ["--hosts 0", "1 or more"]),
    (["--hosts", "two"], ["--hosts", "two"]),
    (["--machine", ""], ["--machine ''"]),
    (["--machine", "POD17"], ["--machine POD17", "'pod1"]),
    (["--machine", "pod16", "--hosts", "2"], ["--hosts 2", "pod16 has 1 host"]),
    (["--machine", "pod64", "--hosts", "3"], ["--hosts 3", "64 IPUs", "Give 1, 2 or 4"]),
    (["--machine", "pod16", "--runtime", "pipeline"], ["runtime = pipeline", "--runtime ipu"]),
    (["--timeline", ""], ["--timeline ''"]),
    (["--timeline", "nowhere/out.svg"], ["--timeline nowhere/out.svg", "no folder"]),
    (["--timeline", "out.png"], ["--timeline out.png", ".svg"]),
    (["--machines", "pod16"], ["unknown flag --machines"]),
]


@pytest.mark.parametrize(("flags", "words"), WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_a_wrong_flag_is_one_message(flags, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        plan.main(["--config", "b16_imagenet1k", *flags])
    for word in words:
        assert word in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_wrong_flag_ends_with_code_2(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "plan.py"), "--config", "digits", "--machine", "moon"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") == 1


def test_a_terminal_that_knows_ascii_alone_gets_a_plan(tmp_path: Path) -> None:
    flags = ["--config", "digits", "--runtime", "ipu", "--machine", "pod16"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    subprocess.run([sys.executable, str(ROOT / "plan.py"), *flags], cwd=tmp_path, env=environment, check=True)


def test_help_lists_the_commands_own_flags_and_the_keys(capsys) -> None:
    with pytest.raises(SystemExit):
        plan.main(["--help"])
    output = capsys.readouterr().out
    assert output.startswith("usage: plan.py ")
    assert output.count("usage:") == 1
    for flag in ("--machine", "--hosts", "--balance", "--timeline", "--summary"):
        assert flag in output.splitlines()[0]
        assert f"  {flag}" in output
    assert "--learning-rate" in output


def test_the_plan_leaves_the_config_as_it_is() -> None:
    assert load_config("plan", ["--config", "b16_imagenet1k"]).layers_per_ipu == (3, 3, 3, 3)
