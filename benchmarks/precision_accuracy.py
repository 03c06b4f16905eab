"""What 16-bit numbers do to accuracy: the same training run in several precisions, with stochastic rounding and without.

    python benchmarks/precision_accuracy.py [--seeds 3] [--epochs 48] [--json FILE] [--figure FILE]

The small ViT of `digits_single` learns scikit-learn's digits in updates that are all of one size, 0.00003, which is just less
than half a step of fp16 for every weight from 1/16 on: rounded to the nearest number, such weights stay where they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from torch import Tensor  # noqa: E402

from benchmarks.facts import cpu_name, write_json  # noqa: E402
from config import Config, load_config  # noqa: E402
from dataset.loader import EvalLoader, TrainLoader  # noqa: E402
from dataset.registry import open_source  # noqa: E402
from evaluation.evaluate import evaluate  # noqa: E402
from optimization import learning_rate_of  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.base import Runtime  # noqa: E402
from runtime.build import build_runtime  # noqa: E402
from training import number_of_steps  # noqa: E402

REFERENCE = "32.32"
NEAREST = " to nearest"  # ends the names of the variants without stochastic rounding
LOSS_SCALING = {"auto-loss-scaling": "true"}  # bf16 reaches as far down as float32 and needs none
VARIANTS: Dict[str, Dict[str, str]] = {
    REFERENCE: {"precision": REFERENCE},
    "bf16.32": {"precision": "bf16.32"},
    "16.32": {"precision": "16.32", **LOSS_SCALING},
    "16.16": {"precision": "16.16", **LOSS_SCALING},
    "bf16.16": {"precision": "bf16.16"},
    "16.16" + NEAREST: {"precision": "16.16", **LOSS_SCALING, "stochastic-rounding": "false"},
    "bf16.16" + NEAREST: {"precision": "bf16.16", "stochastic-rounding": "false"},
}
# Lion makes every update as large as the rate. Constant, and without decay: either would make updates of other sizes.
RECIPE = {
    "config": "digits_single", "optimizer": "Lion", "adam-betas": "0.9 0.99", "learning-rate": "3e-5",
    "lr-schedule": "constant", "warmup-steps": "0", "weight-decay": "0", "micro-batch-size": "32",
    "gradient-accumulation": "2", "device": "cpu", "threads-per-process": "1",
}  # fmt: skip
# Colour, width and style. What rounds stochastically lies on the line of float32: broad and pale below, thin above.
LINES: Dict[str, Tuple[str, float, str]] = {
    REFERENCE: ("#BBBBBB", 7, "-"),
    "bf16.32": ("#54A24B", 3.5, "-"),
    "16.32": ("#E8B23A", 1.5, "-"),
    "16.16": ("#1F4E9C", 1.5, "--"),
    "bf16.16": ("#B279A2", 1.5, ":"),
    "16.16" + NEAREST: ("#D62728", 2, "-"),
    "bf16.16" + NEAREST: ("#8C4A1F", 2, "-"),
}
EPOCHS_BETWEEN = 2  # validations
EPOCHS_SHOWN = 12  # from one line of progress to the next

Run = Dict[str, Any]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=48)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--json", default="", metavar="FILE", help="write each run there, and leave out those it holds")
    parser.add_argument("--figure", default="", metavar="FILE", help="draw the runs there (needs matplotlib)")
    options = parser.parse_args(argv)
    figures = earlier_figures(options.json, options.epochs)
    done = {(run["variant"], run["seed"]) for run in figures["runs"]}
    for seed in range(options.seeds):
        for variant in options.variants:
            if (variant, seed) not in done:
                figures["runs"].append(train(variant, configured(variant, options.epochs, seed)))
                write_safely(options.json, figures)
    runs = runs_of(figures["runs"], options.variants, options.seeds)
    print(f"{figures['cpu']}; {options.epochs} epochs, {options.seeds} seeds; top-1 on 360 held-out digits")
    print(
        table(
            ["", "top-1", "min", "max", "loss", "min", "max", "moved", "CPU s"], [row(*item) for item in runs.items()]
        )
    )
    if options.figure:
        draw(runs, options.figure)
    return 0


def earlier_figures(path: str, epochs: int) -> Dict[str, Any]:
    """What an interrupted measurement has written, or an empty one."""
    figures = {"cpu": cpu_name(), "recipe": RECIPE, "epochs": epochs, "runs": []}
    if not path or not Path(path).exists():
        return figures
    earlier = json.loads(Path(path).read_text())
    if (earlier["recipe"], earlier["epochs"]) != (RECIPE, epochs):
        raise SystemExit(f"error: {path} holds runs of another recipe or length.\n       Give another file in --json.")
    return earlier


def write_safely(path: str, figures: Dict[str, Any]) -> None:
    """Never leaves half a file."""
    if path:
        write_json(path + ".part", figures)
        Path(path + ".part").replace(path)


def configured(variant: str, epochs: int, seed: int) -> Config:
    keys = {**RECIPE, **VARIANTS[variant], "epochs": str(epochs), "random-seed": str(seed)}
    flags = [word for name, value in keys.items() for word in (f"--{name}", *value.split())]
    return load_config("pretrain", ["--config-file", str(ROOT / "configs.yaml"), *flags])


def train(variant: str, config: Config) -> Run:
    """One run: training loss by epoch, held-out top-1 by some of them, and the share of weights that moved at all."""
    runtime = build_runtime(config, place(config))
    train_source, held_out = open_source(config, "train"), open_source(config, "validation")
    assert train_source is not None and held_out is not None
    loader = TrainLoader(train_source, config, runtime.share)
    validation = EvalLoader(
        held_out, config, batch_size=runtime.eval_batch_size, share_index=0, num_shares=1, images=True, targets=True
    )
    num_steps, initial, started = (
        number_of_steps(config, loader.steps_per_epoch),
        weights_of(runtime),
        time.process_time(),
    )
    run: Run = {"variant": variant, "seed": config.random_seed, "steps_per_epoch": loader.steps_per_epoch}
    run.update(loss=[], validated=[], top1=[], skipped_updates=0)
    for epoch in range(config.epochs):
        losses: List[float] = []
        for step, batch in enumerate(loader.epoch(epoch), epoch * loader.steps_per_epoch):
            result = runtime.train_step(batch, learning_rate_of(config, step, num_steps), step)
            losses.append(result.loss)
            run["skipped_updates"] += result.skipped_updates
        run["loss"].append(statistics.mean(losses))
        if is_due(epoch, EPOCHS_BETWEEN, config):
            run["validated"].append(epoch + 1)
            run["top1"].append(evaluate(runtime, validation, config.loss).top1)
        if is_due(epoch, EPOCHS_SHOWN, config):
            print(f"seed {config.random_seed}, {variant}, epoch {epoch + 1}: {shown(run)}", flush=True)
    run.update(seconds=time.process_time() - started, moved=share_that_moved(initial, weights_of(runtime)))
    return run


def is_due(epoch: int, period: int, config: Config) -> bool:
    return (epoch + 1) % period == 0 or epoch + 1 == config.epochs


def shown(run: Run) -> str:
    return f"loss {run['loss'][-1]:.3f}, top-1 {100 * run['top1'][-1]:.2f} %"


def weights_of(runtime: Runtime) -> Dict[str, Tensor]:
    return {name: value.clone() for part in runtime.weights().values() for name, value in part.items()}


def share_that_moved(before: Dict[str, Tensor], after: Dict[str, Tensor]) -> float:
    moved = sum(int((after[name] != value).sum()) for name, value in before.items())
    return moved / sum(value.numel() for value in before.values())


def runs_of(runs: Sequence[Run], variants: Sequence[str], seeds: int) -> Dict[str, List[Run]]:
    """Those asked for, by variant, in the order of their seeds."""
    chosen = {
        variant: [run for run in runs if run["variant"] == variant and run["seed"] < seeds] for variant in variants
    }
    return {variant: sorted(own, key=lambda run: run["seed"]) for variant, own in chosen.items()}


def row(variant: str, runs: Sequence[Run]) -> List[str]:
    top1, loss = [run["top1"][-1] for run in runs], [run["loss"][-1] for run in runs]
    return [
        variant,
        *(f"{100 * value:.2f} %" for value in (statistics.mean(top1), min(top1), max(top1))),
        *(f"{value:.3f}" for value in (statistics.mean(loss), min(loss), max(loss))),
        f"{100 * statistics.mean(run['moved'] for run in runs):.1f} %",
        f"{statistics.mean(run['seconds'] for run in runs):.0f}",
    ]


def draw(runs: Dict[str, List[Run]], path: str) -> None:
    """Training loss and held-out top-1 over weight updates: means over the seeds, in a band from the lowest to the highest."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    for variant, own in runs.items():
        per_epoch = own[0]["steps_per_epoch"]
        epochs = range(1, len(own[0]["loss"]) + 1)
        add_line(left, variant, [per_epoch * epoch for epoch in epochs], [run["loss"] for run in own])
        accuracy = [[100 * value for value in run["top1"]] for run in own]
        add_line(right, variant, [per_epoch * epoch for epoch in own[0]["validated"]], accuracy)
    left.set_title("training loss", loc="left", fontsize=12)
    right.set_title("top-1 of 360 held-out digits, %", loc="left", fontsize=12)
    for axes in (left, right):
        axes.set_xlabel("weight updates", fontsize=11)
        axes.tick_params(labelsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.margins(x=0)
    right.set_ylim(bottom=40)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=160, facecolor="white")


def add_line(axes: Any, variant: str, steps: Sequence[int], values: Sequence[Sequence[float]]) -> None:
    colour, width, style = LINES[variant]
    columns = list(zip(*values))
    mean = [statistics.mean(column) for column in columns]
    axes.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, linewidth=0)
    axes.plot(steps, mean, label=variant, color=colour, linewidth=width, linestyle=style)


if __name__ == "__main__":
    sys.exit(main())
