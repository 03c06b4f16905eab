"""The commands under `--runtime ipu`, from start to end, on real digits; and two instances as poprun starts them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from safetensors.torch import load_file

import finetune
import pretrain
import validation
from tests.poptorch_contract.instances import ROOT, run_two

PRETRAIN = [sys.executable, str(ROOT / "pretrain.py")]
DIGITS = [
    *("--config", "digits", "--ipus-per-replica", "2", "--layers-per-ipu", "2", "2", "--gradient-accumulation", "4"),
    *("--hidden-dropout-prob", "0", "--drop-path-rate", "0", "--micro-batch-size", "16"),
    *("--hidden-size", "32", "--mlp-dim", "64", "--num-attention-heads", "2"),
]


def run(command: Any, *flags: str) -> None:
    assert command.main([*DIGITS, *flags]) == 0


def records(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> Dict[str, Any]:
    return {
        name: value for file in sorted(folder.glob("model-*.safetensors")) for name, value in load_file(file).items()
    }


@pytest.mark.slow
def test_digits_are_learned_resumed_and_validated_as_on_one_device(poptorch: Any, tmp_path: Any, capsys: Any) -> None:
    folders = {runtime: tmp_path / runtime for runtime in ("ipu", "single")}
    for runtime, folder in folders.items():
        run(pretrain, "--runtime", runtime, "--epochs", "3", "--checkpoint-output-dir", str(folder))
    ipu, single = (
        {(r["event"], r["step"]): r for r in records(folder) if r["event"] in ("step", "validation")}
        for folder in folders.values()
    )
    assert ipu.keys() == single.keys() and len(ipu) > 30
    for key, record in single.items():
        assert ipu[key]["loss"] == pytest.approx(record["loss"], abs=1e-4)
    # 1 of the 360 held-out digits: the weights differ in the last bits.
    assert max(r.get("top1", 0) for r in ipu.values()) == pytest.approx(
        max(r.get("top1", 0) for r in single.values()), abs=1 / 359
    )
    out = capsys.readouterr().out
    assert re.search(r"compiled for training in [\d.]+ s", out)
    assert re.search(r"loss:\s+([\d\.]+)", out) and re.search(r"throughput: *(.*?) samples\/sec", out)

    # Stopped and resumed: the same weights to the last bit.
    parts = tmp_path / "parts"
    steps = len([key for key in ipu if key[0] == "step"])
    run(
        pretrain,
        "--runtime",
        "ipu",
        "--epochs",
        "3",
        "--checkpoint-output-dir",
        str(parts),
        "--checkpoint-save-steps",
        "7",
    )
    last = parts / "latest"
    expected = weights(last)
    for folder in [p for p in parts.glob("step_*") if int(p.name.split("_")[1]) > 7]:
        subprocess.run(["rm", "-r", str(folder)], check=True)
    for link in ("latest", "best"):
        (parts / link).unlink()
    poptorch.stand_in.reset()
    run(pretrain, "--runtime", "ipu", "--epochs", "3", "--checkpoint-output-dir", str(parts), "--resume")
    assert (parts / "latest").resolve().name == f"step_{steps}"
    assert all(torch.equal(value, expected[name]) for name, value in weights(parts / "latest").items())

    # What an IPU has saved, one device validates, and the other way round.
    accuracies = []
    for runtime, folder in (("ipu", folders["single"]), ("single", folders["ipu"]), ("ipu", folders["ipu"])):
        capsys.readouterr()
        poptorch.stand_in.reset()
        run(validation, "--runtime", runtime, "--pretrained-checkpoint", str(folder / "latest"))
        accuracies.append(float(re.search(r"Valid Accuracy: *(\d+\.\d+)", capsys.readouterr().out).group(1)))
    assert max(accuracies) - min(accuracies) <= 1 / 359
    poptorch.stand_in.reset()
    run(
        finetune,
        *(
            "--runtime",
            "ipu",
            "--training-steps",
            "2",
            "--precision",
            "16.16",
            "--checkpoint-output-dir",
            str(tmp_path / "half"),
        ),
        *("--pretrained-checkpoint", str(folders["single"]), "--mixup", "true", "--alpha", "0.2"),
    )
    assert {value.dtype for value in weights(tmp_path / "half" / "latest").values()} == {torch.float16}


@pytest.mark.slow
def test_two_instances_of_poprun_train_as_one_process(tmp_path: Any, stand_in_path: str) -> None:
    flags = [*DIGITS, "--training-steps", "3", "--device-iterations", "2", "--mixup", "--alpha", "0.3"]
    # Adam would blow the rounding of gradients that are 0 up to whole updates.
    flags += ["--optimizer", "SGD", "--learning-rate", "0.05", "--warmup-steps", "0"]
    one = tmp_path / "one"
    flags_one = [*flags, "--runtime", "single", "--replication-factor", "4", "--checkpoint-output-dir", str(one)]
    assert pretrain.main(flags_one) == 0
    two = tmp_path / "two"
    outputs = run_two(
        lambda _: [*PRETRAIN, *flags, "--runtime", "ipu", "--checkpoint-output-dir", str(two)], tmp_path, stand_in_path
    )
    actual, expected = weights(two / "latest"), weights(one / "latest")
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6)
    validations = [[(r["loss"], r["top1"]) for r in records(f) if r["event"] == "validation"] for f in (two, one)]
    assert len(validations[1]) == 2 and validations[0] == [
        pytest.approx(figures, abs=1e-5) for figures in validations[1]
    ]
    figures = [[(r["loss"], r["accuracy"]) for r in records(f) if r["event"] == "step"] for f in (two, one)]
    for ours, theirs in zip(*figures):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert "compiled for training" in outputs[0] and "Step:" in outputs[0]
    assert "Step:" not in outputs[1]  # one process speaks

    more = ["--training-steps", "4", "--runtime", "ipu", "--checkpoint-output-dir", str(two), "--resume"]
    resumed = run_two(lambda _: [*PRETRAIN, *flags, *more], tmp_path, stand_in_path)
    assert "resumed after step 3" in resumed[0]
    assert (two / "latest").resolve().name == "step_4"


def test_the_best_weights_come_back_onto_the_ipus(poptorch: Any, tmp_path: Any, capsys: Any) -> None:
    # Steps so large that digits are not learned: the best validation comes first, and the run ends early.
    flags = "--runtime ipu --epochs 9 --learning-rate 1 --warmup-steps 0 --early-stopping 1 --restore-best true"
    run(pretrain, *flags.split(), "--checkpoint-output-dir", str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert (tmp_path / "run" / "best").resolve() != (tmp_path / "run" / "latest").resolve()
    now, then = re.search(
        r"restored the weights of the best step, \d+: (\S+) % of 360 samples, (\S+) % when", out
    ).groups()
    assert now == then
