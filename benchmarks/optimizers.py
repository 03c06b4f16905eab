"""What each optimiser reaches in a short run on the handwritten digits, at the best of the rates that were tried for it.

    python benchmarks/optimizers.py [--epochs 15] [--seeds 3] [--json FILE]

The model and data of `digits_single`, batch 64, cosine schedule with one epoch of warm-up, float32, one thread. Other rates were
tried beside those of the table, with two seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import cpu_name, spread, write_json  # noqa: E402
from config import load_config  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from run_setup import prepare_run  # noqa: E402
from training import fit  # noqa: E402

UPDATES_AN_EPOCH = 22


class Recipe(NamedTuple):
    """What one optimiser is run with."""

    learning_rate: float
    weight_decay: float
    others: Tuple[str, ...] = ()


RECIPES: Dict[str, Recipe] = {
    "SGD": Recipe(0.03, 1e-3),
    "Adam": Recipe(3e-3, 0.0),
    "AdamW": Recipe(6e-3, 0.25),
    "LAMB": Recipe(1e-2, 0.1),
    "Lion": Recipe(6e-4, 1.5, ("--adam-betas", "0.9", "0.99")),
    "Muon": Recipe(6e-3, 0.25, ("--momentum", "0.95")),
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    reached: Dict[str, List[Tuple[float, float]]] = {name: [] for name in RECIPES}
    for seed in range(1, options.seeds + 1):
        for name, recipe in RECIPES.items():
            reached[name].append(train(name, recipe, seed, options.epochs))
            accuracy, seconds = reached[name][-1]
            print(f"seed {seed}, {name}: {accuracy:.2%} in {seconds:.0f} s", file=sys.stderr, flush=True)
    print(
        f"{cpu_name()}, one thread; digits, {options.epochs} epochs of {UPDATES_AN_EPOCH} updates, {options.seeds} seeds"
    )
    rows = []
    for name, recipe in RECIPES.items():
        accuracies = [100 * accuracy for accuracy, _ in reached[name]]
        step = 1e3 * spread([seconds for _, seconds in reached[name]])["median"] / (options.epochs * UPDATES_AN_EPOCH)
        span = f"{min(accuracies):.2f} to {max(accuracies):.2f}"
        mean = sum(accuracies) / len(accuracies)
        rows.append(
            [name, f"{recipe.learning_rate:g}", f"{recipe.weight_decay:g}", f"{mean:.2f} %", span, f"{step:.0f} ms"]
        )
    print(table(["optimizer", "learning rate", "weight decay", "held-out top-1", "over seeds", "a step"], rows))
    write_json(options.json, {"cpu": cpu_name(), "options": vars(options), "reached": reached})
    return 0


def train(optimizer: str, recipe: Recipe, seed: int, epochs: int) -> Tuple[float, float]:
    """Held-out accuracy after the last step, and the seconds of the run."""
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": "digits_single",
        "checkpoint-output-dir": "",
        "random-seed": seed,
        "micro-batch-size": 64,
        "gradient-accumulation": 1,
        "threads-per-process": 1,
        "epochs": epochs,
        "warmup-steps": UPDATES_AN_EPOCH,
        "validation-epochs": epochs,
        "optimizer": optimizer,
        "learning-rate": recipe.learning_rate,
        "weight-decay": recipe.weight_decay,
    }
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    config = load_config("pretrain", [*arguments, *recipe.others])
    with contextlib.redirect_stdout(io.StringIO()):
        run = prepare_run(config, place(config))
        begun = time.perf_counter()
        fit(run)
    assert run.progress.best_top1 is not None  # the only validation is the last
    return run.progress.best_top1, time.perf_counter() - begun


if __name__ == "__main__":
    raise SystemExit(main())
