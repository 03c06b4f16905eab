"""The whole job on a small set in the real files: digits as films, learned by the config `chest_xray` with a small model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, List

import pytest
from safetensors.torch import load_file

import finetune
import launch
import validation
from tests.xray_digits import write_digit_films

# As on docs/chest_xray.md. Patches are as large as digits; nothing is cropped, turned or mirrored, since digits are not films.
SMALL = (
    "--pretrained-checkpoint= --image-size 16 --num-channels 1 --patches-size 8 --hidden-size 64 --mlp-dim 128 "
    "--num-hidden-layers 2 --num-attention-heads 4 --layers-per-ipu 2 --ipus-per-replica 1 --micro-batch-size 16 "
    "--gradient-accumulation 1 --learning-rate 3e-3 --warmup-ratio 0.1 --train-crop-scale null --horizontal-flip false "
    "--rotation 0 --image-mean 0.15 --image-std 0.25 --dataloader-workers 0"
)
HERE = ["--device", "cpu", "--runtime", "single", "--threads-per-process", "1", "--config", "chest_xray"]


def run(command: Any, *flags: str) -> int:
    return launch.guarded(lambda: command.main([*HERE, *SMALL.split(), *flags]))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_digits_as_films_are_told_apart_with_the_stated_area(capfd: pytest.CaptureFixture[str]) -> None:
    write_digit_films(Path("films"), num_train=1600, num_test=400)
    assert run(finetune, "--dataset-path", "films", "--epochs", "4", "--checkpoint-output-dir", "run") == 0
    output = capfd.readouterr().out
    assert "labels that no validation image has: Nodule, Pleural_Thickening, Pneumonia, Pneumothorax" in output
    areas = [float(row.split()[3]) for row in re.findall(r"^ +\d+  +\d.*$", output, re.MULTILINE)]
    assert len(areas) == 4
    best = float(re.search(r"best AUC +(\S+) at step", output).group(1))
    assert best == max(areas) >= 0.98
    assert re.search(r"^  throughput  .*\n  evaluation  ", output, re.MULTILINE)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert max(line["auc"] for line in lines if line["event"] == "validation") == pytest.approx(best, abs=5e-5)
    flags = ["--config-file", "run/config.yaml", "--pretrained-checkpoint", "run", "--device", "cpu"]
    assert launch.guarded(lambda: validation.main(flags)) == 0
    output = capfd.readouterr().out
    assert re.search(r"Valid AUC: (\S+)", output).group(1)[:6] == f"{best:.4f}"
    assert re.search(r"^mean +" + f"{best:.4f}", output, re.MULTILINE)
    assert re.search(r"^Hernia +\d\.\d{4} +\d+ +\S+ +\d\.\d{3} +\d\.\d{3}$", output, re.MULTILINE)


def weights(folder: str) -> List[Any]:
    return [load_file(path) for path in sorted(Path(folder).glob("model-*.safetensors"))]


def test_a_balanced_run_goes_on_from_its_last_checkpoint_bit_for_bit(capfd: pytest.CaptureFixture[str]) -> None:
    write_digit_films(Path("films"), num_train=48, num_test=20, lists=False)
    data = [
        "--dataset-path",
        "films",
        "--positive-weights",
        "balanced",
        "--balanced-sampling",
        "--checkpoint-save-steps",
    ]
    assert run(finetune, *data, "3", "--epochs", "2", "--checkpoint-output-dir", "whole") == 0
    output = capfd.readouterr().out
    assert "balanced_sampling: an epoch makes 64 draws" in output
    assert re.search(r"positive_weights: Atelectasis [\d.]+, ", output)
    assert "a patient may be on both sides" in output
    resume = ["--resume", "--resume-step", "6", "--epochs", "2", "--checkpoint-output-dir", "whole"]
    before = weights("whole/step_8")
    assert run(finetune, *data, "3", *resume) == 0
    assert "other keys" not in capfd.readouterr().out
    after = weights("whole/step_8")
    assert all((one[name] == two[name]).all() for one, two in zip(before, after) for name in one)


MISTAKES = [
    (
        ["--num-labels", "14"],
        ["15 labels an image", "num_labels = 14", "Set num_labels = 15, or leave No Finding out: no_finding = false."],
    ),
    (["--no-finding", "false"], ["14 labels an image", "Set num_labels = 14"]),
    (["--loss", "CELoss"], ["several labels", "Set loss = SigmoidCELoss"]),
    (["--loss", "CELoss", "--positive-weights", "balanced"], ["positive_weights", "loss = CELoss"]),
    (["--positive-weights", "1", "2"], ["2 numbers for num_labels = 15"]),
    (["--dataset-path", "nowhere"], ["nowhere is not a folder"]),
]


@pytest.mark.parametrize(("flags", "words"), MISTAKES, ids=[" ".join(flags) for flags, _ in MISTAKES])
def test_what_a_user_gets_wrong_ends_with_a_message(
    flags: List[str], words: List[str], capfd: pytest.CaptureFixture[str]
) -> None:
    write_digit_films(Path("films"), num_train=20, num_test=4)
    assert run(finetune, "--dataset-path", "films", "--checkpoint-output-dir", "", *flags) == 2
    message = capfd.readouterr().err
    assert all(word in message for word in words), message
