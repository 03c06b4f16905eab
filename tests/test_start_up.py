"""What a command imports before it answers or trains: that is most of its start."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Sequence, Set

import pytest

import launch

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("pretrain", "finetune", "validation", "predict", "plan", "verify", "convert")
HEAVY = {"torch", "numpy", "PIL", "rich", "matplotlib", "sklearn", "tensorboard", "transformers"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
SELDOM = {"torchvision", "matplotlib", "sklearn", "scipy", "transformers", "datasets", "huggingface_hub", "wandb"}
EVERY_OPTIMISER_AND_A_RUN = """
import sys, torch
at_start = set(sys.modules)  # torch 2.0.1 imports sympy by itself

import pretrain
from config import load_config
from optimization import build_optimizer
for name in ("SGD", "Adam", "AdamW", "LAMB", "Lion", "Muon"):
    config = load_config("pretrain", ["--config", "digits_single", "--optimizer", name])
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2)
    build_optimizer(config, {"head.weight": weight}).step()
    assert (weight != 1).all(), name
short = ["--training-steps", "1", "--epochs", "0", "--checkpoint-output-dir", sys.argv[1]]
assert pretrain.main(["--config", "digits_single", "--device", "cpu", *short]) == 0
print("imported:", *set(sys.modules) - at_start)
"""


def imported_by(*words: str) -> Set[str]:
    """The modules that a bare `python words...` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("command", [[f"{name}.py"] for name in COMMANDS] + [["-m", "reporting"]], ids=" ".join)
def test_help_imports_nothing_that_takes_long(command: Sequence[str]):
    modules = imported_by(*command, "--help")
    assert "argparse" in modules
    assert not modules & HEAVY


@pytest.mark.slow
def test_training_imports_neither_torchs_compiler_nor_what_it_does_not_use(tmp_path):
    words = [sys.executable, "-c", EVERY_OPTIMISER_AND_A_RUN, str(tmp_path / "run")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "reporting.tensorboard" in modules
    assert not modules & (COMPILER | SELDOM)


@pytest.mark.parametrize("module", launch.PRELOADED)
def test_what_workers_share_is_there(module):
    assert find_spec(module) is not None
