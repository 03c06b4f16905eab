"""What a small ViT reaches on handwritten digits in each precision, with and without stochastic rounding: the same recipe.

    python benchmarks/precision_accuracy.py [--seeds 3] [--jobs 2] [--json FILE] [--figure FILE]

The recipe makes steps that are small beside fp16's: Lion moves every weight by the learning rate, 3e-5 here, which is less than
half the distance of two fp16 numbers from 0.06 up. What is done is kept in the JSON file, and left out when the script is started
again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import load_config  # noqa: E402
from dataset.loader import TrainLoader  # noqa: E402
from dataset.registry import open_source  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from run_setup import evaluation_loader  # noqa: E402
from runtime.build import build_runtime  # noqa: E402
from training import evaluate  # noqa: E402

ALS, NEAREST = ("--auto-loss-scaling", "true"), ("--stochastic-rounding", "false")
VARIANTS: Dict[str, Tuple[str, ...]] = {
    "32.32": ("--precision", "32.32"),
    "bf16.32": ("--precision", "bf16.32"),
    "16.32, ALS": ("--precision", "16.32", *ALS),
    "16.16, ALS, stochastic rounding": ("--precision", "16.16", *ALS),
    "bf16.16, stochastic rounding": ("--precision", "bf16.16"),
    "16.16, ALS, to the nearest": ("--precision", "16.16", *ALS, *NEAREST),
    "bf16.16, to the nearest": ("--precision", "bf16.16", *NEAREST),
}
RECIPE = {
    "config-file": ROOT / "configs.yaml",
    "config": "digits_single",
    "checkpoint-output-dir": "",
    "threads-per-process": 1,
    "micro-batch-size": 32,
    "gradient-accumulation": 2,
    "optimizer": "Lion",
    "learning-rate": 3e-5,
    "lr-schedule": "constant",
    "warmup-steps": 0,
    "weight-decay": 0,
    "label-smoothing": 0,
}
POINTS = 12  # of each curve
Curve = List[Tuple[int, float, float]]  # updates, held-out top-1, mean training loss since the last point


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--json", default="precision_accuracy.json", metavar="FILE", help="where figures are kept")
    parser.add_argument("--figure", default="", metavar="FILE", help="draw the curves there")
    options = parser.parse_args(argv)
    path = Path(options.json)
    curves: Dict[str, Curve] = json.loads(path.read_text()) if path.exists() else {}
    tasks = [(name, seed, options.epochs) for seed in range(options.seeds) for name in options.variants]
    missing = [task for task in tasks if _key(*task) not in curves]
    with get_context("spawn").Pool(options.jobs) as pool:
        for key, curve in pool.imap_unordered(train, missing):
            curves[key] = curve
            path.write_text(json.dumps(curves) + "\n")
            print(f"{key}: {curve[-1][1]:.2%}, loss {curve[-1][2]:.4f}", file=sys.stderr, flush=True)
    wanted = {
        name: [curves[_key(name, seed, options.epochs)] for seed in range(options.seeds)] for name in options.variants
    }
    print(f"digits, {options.epochs} epochs, {options.seeds} seeds; held-out accuracy after the last update")
    print(
        table(
            ["precision", "top-1", "over seeds", "training loss"], [_row(name, found) for name, found in wanted.items()]
        )
    )
    if options.figure:
        draw(wanted, options.figure)
    return 0


def _key(name: str, seed: int, epochs: int) -> str:
    return f"{name}; seed {seed}; {epochs} epochs"


def train(task: Tuple[str, int, int]) -> Tuple[str, Curve]:
    """One run."""
    name, seed, epochs = task
    flags = {**RECIPE, "random-seed": seed, "epochs": epochs}
    arguments = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    config = load_config("pretrain", [*arguments, *VARIANTS[name]])
    runtime = build_runtime(config, place(config))
    source, held_out = open_source(config, "train"), open_source(config, "validation")
    assert source is not None and held_out is not None and config.learning_rate is not None
    loader = TrainLoader(source, config, runtime.share, runtime.from_first_stage)
    curve: Curve = []
    losses: List[float] = []
    update = 0
    for epoch in range(epochs):
        for batch in loader.epoch(epoch):
            losses.append(runtime.train_step(batch, config.learning_rate, update).loss)
            update += 1
        if (epoch + 1) * POINTS % epochs < POINTS:
            top1 = evaluate(runtime, evaluation_loader(config, held_out, runtime), config.loss).top1
            curve.append((update, top1, statistics.mean(losses)))
            losses.clear()
    return _key(*task), curve


def _row(name: str, curves: Sequence[Curve]) -> List[str]:
    accuracies = [100 * curve[-1][1] for curve in curves]
    loss = statistics.mean(curve[-1][2] for curve in curves)
    span = f"{min(accuracies):.2f} to {max(accuracies):.2f}"
    return [name, f"{statistics.mean(accuracies):.2f} %", span, f"{loss:.4f}"]


def draw(curves: Dict[str, List[Curve]], path: str) -> None:
    """Training loss and held-out error over the updates: the mean of the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
    for index, (name, found) in enumerate(curves.items()):
        style: Dict[str, Any] = {"color": f"C{index}", "linestyle": "--" if "nearest" in name else "-"}
        updates = [point[0] for point in found[0]]
        for axis, column, scale in ((axes[0], 2, 1.0), (axes[1], 1, 100.0)):
            values = [[scale * curve[at][column] for curve in found] for at in range(len(updates))]
            axis.plot(updates, [statistics.mean(each) for each in values], label=name, linewidth=1.8, **style)
            axis.fill_between(
                updates, [min(v) for v in values], [max(v) for v in values], alpha=0.12, color=f"C{index}"
            )
    axes[0].set(title="Training loss", xlabel="weight updates", yscale="log")
    axes[1].set(title="Held-out accuracy, %", xlabel="weight updates", ylim=(80, 99))
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
