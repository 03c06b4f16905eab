"""Imports point one way: commands -> training -> runtime -> models and optim; side rooms do not know each other.

Everything is read from the source text, so that imports inside functions and for type checkers count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Iterator, List

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {"tests", "benchmarks", "docs", "data", "output", "runs"}

COMMANDS = ("pretrain", "finetune", "validation", "predict", "plan", "verify", "convert")
# Everyone may import these; they themselves, errors alone.
LEAVES = ("config", "errors", "arguments", "seeding", "batch")
RUN_FOLDER = ("checkpoint", "run_folder", "saving", "step_writer", "resuming")
IPU = ("ipu_options", "ipu_plan")
ROOMS = (
    *(
        "agreement",
        "allocation",
        "launch",
        "training",
        "stop_signal",
        "placement",
        "machine",
        "optimization",
        *RUN_FOLDER,
    ),
    *("inspection_text", "compile_only", *IPU, "planning", "runtime", "models", "optim"),
    *("dataset", "weights", "reporting", "evaluation", "insight", "prediction", "publishing"),
)

# What each room (a folder or a module of the root) may import of ours, besides the leaves and itself; and why.
# "runtime.base" stands for that module alone.
MAY_IMPORT = {
    **dict.fromkeys(COMMANDS, (("run_setup", *ROOMS), "recipes: they may use everything, but not each other")),
    "run_setup": (ROOMS, "what the recipes share before their loop starts"),
    "launch": (("placement", "machine"), "starts commands by name, before torch is imported"),
    "training": (
        (
            *("runtime.base", "dataset", "reporting", *RUN_FOLDER, "evaluation", "optimization", "optim"),
            *("weights.card", "insight.observing", "stop_signal"),
        ),
        "the one loop: it knows the runtime protocol, not a runtime",
    ),
    "saving": (
        (
            "step_writer",
            "checkpoint",
            "run_folder",
            "runtime.base",
            "reporting.records",
            "weights.card",
            "weights.tensor_files",
        ),
        "copies what any runtime hands out",
    ),
    "step_writer": (
        ("checkpoint", "run_folder", "reporting.records", "weights.card", "weights.tensor_files"),
        "writes what it is handed, without a runtime",
    ),
    "agreement": (("runtime.base", "machine"), "what processes agree on, whatever runs the model"),
    "resuming": (("agreement", "checkpoint", "run_folder", "runtime.base", "weights.card"), "puts back what was saved"),
    "checkpoint": (
        ("runtime.base", "weights.card", "weights.json_file", "weights.tensor_files"),
        "the form of a saved step",
    ),
    "run_folder": ((), "files and links of a run, whatever is in them"),
    "runtime": (("models", "optim", "optimization", "placement", "machine", *IPU), "runs the model"),
    "compile_only": (("allocation", "placement", "runtime"), "what a flag of three commands does"),
    "ipu_options": (("ipu_plan",), "translates a config for PopTorch"),
    "ipu_plan": ((), "what PopTorch would refuse, without PopTorch"),
    "inspection_text": (("dataset", "reporting.tables"), "prints what verify.py finds"),
    "planning": (
        (
            *("models.architecture", "models.freezing", "models.stages"),
            *("placement", "ipu_plan", "machine", "reporting.tables"),
        ),
        "plans for machines that are not here: arithmetic alone, no torch, plan.py's part; a report's timeline has its formulas",
    ),
    "allocation": (("models", "placement", "reporting.tables"), "prints the plan"),
    "placement": (("models.stages", "machine", *IPU), "folds the plan onto what there is, without torch"),
    "optimization": (("optim", "models.stages"), "the optimiser and schedule for a config"),
    "weights": (("models", "runtime.base"), "side room: reads and writes formats"),
    "evaluation": (
        ("models.losses", "runtime.base", "dataset", "reporting.records"),
        "sums and findings of a validation pass, whatever runs the model",
    ),
    "insight": (
        (
            *("models", "weights", "dataset", "planning.schedule", "placement", "allocation", "machine", "run_folder"),
            *("reporting.base", "reporting.records", "runtime.base"),
        ),
        "what reports show of a run, its machine and its model: above the side rooms, beside the loop",
    ),
    "publishing": (
        ("training", "checkpoint", "weights"),
        "what becomes of a run's weights after it",
    ),
    "prediction": (
        ("models", "weights", "dataset", "insight", "reporting.tables", "reporting.console", "machine"),
        "answers about a user's own pictures: above the side rooms, and nobody's part but predict.py's",
    ),
    "dataset": (("machine",), "side room: gives batches"),
    "reporting": ((), "side room: is told records"),
    "models": (("machine",), "the model knows nothing of how it is run, but what the CPU multiplies"),
    "optim": ((), "rules of optimisers and schedules alone"),
    "machine": ((), "what this process runs on"),
    "stop_signal": ((), "signals alone"),
    "config": (("arguments",), "every key once; others import config itself, not its parts"),
    "errors": ((), "a leaf"),
    "arguments": ((), "a leaf"),
    "seeding": ((), "a leaf"),
    "batch": ((), "a leaf"),
}
PARTS_OF_CONFIG = ("config_checks", "config_files", "config_keys", "flags")

IPU_RUNTIME = ("runtime.ipu", "runtime.ipu_model", "runtime.ipu_optimizer")
# Third-party packages that only some modules may import; and why.
ONLY_IN = {
    "poptorch": (("ipu_options", *IPU_RUNTIME), "absent everywhere but on IPU hosts"),
    "popdist": (("ipu_options",), "absent everywhere but on IPU hosts"),
    "horovod": (("ipu_options", "runtime.ipu_instances"), "torch.distributed does that job elsewhere"),
    "flask": (("prediction.server",), "loaded for predict.py --serve alone"),
    "waitress": (("prediction.server",), "loaded for predict.py --serve alone"),
    "torch.distributed.pipelining": (
        ("runtime.pipeline", "runtime.stage"),
        "newer than the oldest torch that the rest runs on",
    ),
}
PLANNING = tuple(
    f"planning.{path.stem}" for path in sorted((ROOT / "planning").glob("*.py")) if path.stem != "__init__"
)
WITHOUT_TORCH = (
    *("config", *PARTS_OF_CONFIG, "errors", "arguments", "seeding", "models.stages", "placement", "launch"),
    *("predict", "prediction.options", "ipu_plan", "plan", *PLANNING),
)


def test_imports_point_the_way_that_the_design_says():
    found = [problem for path in our_files() for problem in problems(module_name(path), path.read_text())]
    assert found == []


def test_our_files_keep_to_the_grammar_of_python_3_8():
    programs = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in [*our_files(), *programs]:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("models.vit", "import runtime", "models.vit may not import runtime"),
        ("models.vit", "from training import fit", "models.vit may not import training"),
        ("runtime.single", "import training", "runtime.single may not import training"),
        ("runtime.single", "from dataset.loader import TrainLoader", "runtime.single may not import dataset.loader"),
        ("training", "from runtime.pipeline import PipelineRuntime", "training may not import runtime.pipeline"),
        ("training", "from runtime import single", "training may not import runtime.single"),
        ("dataset.loader", "import reporting.base", "dataset.loader may not import reporting.base"),
        ("reporting.build", "from weights import hub", "reporting.build may not import weights.hub"),
        ("finetune", "from pretrain import main", "finetune may not import pretrain"),
        ("launch", "import pretrain", "launch may not import pretrain"),
        ("dataset.loader", "import importlib\nimportlib.import_module('pretrain')", "may not import pretrain"),
        ("optim.lamb", "def step():\n    from runtime import base", "optim.lamb may not import runtime.base"),
        ("errors", "import config", "errors may not import config"),
        ("flags", "from models.stages import plan_stages", "flags may not import models.stages"),
        ("training", "from flags import parse_flags", "training may not import flags"),
        ("models.vit", "from ..runtime import base", "models.vit imports by a relative path"),
        ("training", "import poptorch", "training may not import poptorch"),
        ("runtime.single", "import horovod.torch as hvd", "runtime.single may not import horovod"),
        ("runtime.base", "from torch.distributed import pipelining", "may not import torch.distributed.pipelining"),
        ("models.stages", "import torch", "models.stages may not import torch"),
        ("config", "def check():\n    from torch import nn", "config may not import torch"),
        ("newcomer", "import os", "newcomer has no place in MAY_IMPORT"),
    ],
)
def test_a_forbidden_import_is_found(module, source, problem):
    assert any(problem in found for found in problems(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pretrain", "from training import fit\nfrom runtime.build import build_runtime\nimport dataset.loader"),
        ("training", "from runtime.base import Runtime\nfrom config import Config\nimport torch"),
        ("launch", "import importlib\nimportlib.import_module(command)"),
        ("runtime.pipeline", "from torch.distributed.pipelining import PipelineStage\nfrom runtime import base"),
        ("runtime.ipu", "import poptorch"),
        ("reporting.wandb", "import wandb"),
        ("config_checks", "from config import Config\nfrom errors import UserError"),
    ],
)
def test_an_allowed_import_is_not_reported(module, source):
    assert problems(module, source) == []


def test_the_table_has_no_circle():
    rooms = {room: {name.split(".")[0] for name in allowed} for room, (allowed, _) in MAY_IMPORT.items()}
    while rooms:
        lowest = {room for room, allowed in rooms.items() if not allowed & set(rooms)}
        assert lowest, f"these may import each other: {sorted(rooms)}"
        rooms = {room: allowed for room, allowed in rooms.items() if room not in lowest}


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_runs_before_torch_does_not_load_it(module):
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def our_files() -> Iterator[Path]:
    """Every Python file of the application."""
    for path in sorted(ROOT.rglob("*.py")):
        folders = path.relative_to(ROOT).parts[:-1]
        if not any(folder.startswith(".") or folder in NOT_OURS for folder in folders):
            yield path


def module_name(path: Path) -> str:
    """models/vit.py -> "models.vit", models/__init__.py -> "models"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def problems(module: str, source: str) -> List[str]:
    """What is wrong with the imports of a module, one sentence each."""
    room = room_of(module)
    if room not in MAY_IMPORT:
        return [f"{module} has no place in MAY_IMPORT: say which rooms it may import, and why"]
    return [problem for name in imports(source) for problem in _problems_with(module, room, name)]


def _problems_with(module: str, room: str, name: str) -> Iterator[str]:
    if name.startswith("."):
        yield f"{module} imports by a relative path ({name}): imports start at the root"
    allowed, reason = MAY_IMPORT[room]
    is_free = room_of(name) not in MAY_IMPORT or room_of(name) == room  # not ours, or the module's own room
    leaves = ("errors",) if room in LEAVES else LEAVES
    if not is_free and not any(is_within(name, part) for part in (*allowed, *leaves)):
        yield f"{module} may not import {name} ({room}: {reason})"
    for package, (modules, reason) in ONLY_IN.items():
        if is_within(name, package) and module not in modules:
            yield f"{module} may not import {package} ({reason})"
    if is_within(name, "torch") and module in WITHOUT_TORCH:
        yield f"{module} may not import torch (it runs before torch is needed)"


def room_of(name: str) -> str:
    """The folder or root module that a dotted name belongs to."""
    first = name.split(".")[0]
    return "config" if first in PARTS_OF_CONFIG else first


def is_within(name: str, package: str) -> bool:
    """Whether the dotted `name` is `package` or lies in it."""
    return f"{name}.".startswith(f"{package}.")


def imports(source: str) -> Iterator[str]:
    """Dotted names of all that a source text imports, `from a import b` as "a.b"; relative ones start with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value
