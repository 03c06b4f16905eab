"""Train images a second of `single` beside timm's model in a plain loop and Hugging Face's `Trainer`: ViT-S/16, 224 px.

    python benchmarks/train_throughput.py [--batch 8] [--precisions 32.32 bf16.32] [--rounds 5] [--json FILE]

All three take turns within one process, with the same threads; each round of turns gives one ratio.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.facts import cpu_name, matmul_rate, matmul_shapes, random_batch, shown, spread, write_json  # noqa: E402
from benchmarks.peers import Turn, take_turns, timm_turn  # noqa: E402
from config import load_config  # noqa: E402
from machine import num_cores  # noqa: E402
from models.architecture import Architecture, architecture_of, count_forward_flops  # noqa: E402
from models.stages import plan_stages  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.build import build_runtime  # noqa: E402

OURS = "single"
TARGET = 1.0  # times the better peer
HEADERS = ("precision", "contender", "rounds", "images/s", "min", "max", "ours / it", "GFLOP/image", "of matmul rate")


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    torch.set_num_threads(options.threads or num_cores())
    arch = architecture_of(load_config("pretrain", config_arguments(options, "32.32")))
    shapes = matmul_shapes(options.batch * arch.num_tokens, arch.embed_dim, arch.mlp_dim)
    rates = {"32.32": matmul_rate(shapes, torch.float32), "bf16.32": matmul_rate(shapes, torch.bfloat16)}
    figures = {precision: measure(options, precision) for precision in options.precisions}
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; ViT-S/16, 224 px, batch {options.batch}, AdamW")
    print(
        f"matrix products of these shapes: {rates['32.32'] / 1e9:.0f} GFLOP/s in fp32, {rates['bf16.32'] / 1e9:.0f} in bf16"
    )
    print(table(HEADERS, [row for precision in figures for row in rows(precision, figures[precision], rates)]))
    for precision, measured in figures.items():
        print(verdict(precision, measured))
    about = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "matmul_flops_per_second": rates}
    write_json(options.json, {**about, "precisions": figures})
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch", type=int, default=8, help="images a step (default: 8)")
    add("--precisions", nargs="+", default=["32.32", "bf16.32"], choices=("32.32", "bf16.32"), help="default: both")
    add("--rounds", type=int, default=5, help="at most so many turns of each (default: 5)")
    add("--budget-seconds", type=float, default=60.0, help="a precision, if a step of each fits (default: 60)")
    add("--threads", type=int, default=0, help="threads of each contender (default: all cores)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, precision: str) -> Dict[str, Any]:
    """Images a second of each contender in each round, and FLOPs an image."""
    config = load_config("pretrain", config_arguments(options, precision))
    bf16 = precision == "bf16.32"
    arch = architecture_of(config)
    contenders = {OURS: our_turn(config), "timm, plain loop": timm_turn(arch, options.batch, bf16)}
    seconds = take_turns(arch, options.batch, bf16, contenders, options.rounds, options.budget_seconds)
    assert torch.get_num_threads() == (options.threads or num_cores()), "a contender changed the number of threads"
    return {
        "images_per_second": {name: [options.batch / each for each in steps] for name, steps in seconds.items()},
        "flops_per_image": {name: train_flops(arch, whole_last_block=name != OURS) for name in seconds},
    }


def config_arguments(options: argparse.Namespace, precision: str) -> List[str]:
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": "generated_s16",
        "runtime": OURS,
        "device": "cpu",
        "threads-per-process": options.threads,
        "precision": precision,
        "micro-batch-size": options.batch,
        "gradient-accumulation": 1,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def our_turn(config: Any) -> Turn:
    """Host steps of the product's own runtime, from uint8 pixels to the updated weights."""
    runtime = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)

    def turn(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            runtime.train_step(batch, 1e-3, 0)
        return time.perf_counter() - start

    return turn


def train_flops(arch: Architecture, whole_last_block: bool) -> int:
    """Floating-point operations of training on one image by formula: three forward passes' worth of matrix products.

    The class token is all that the head reads. We leave the rest of the last block out, the peers compute it.
    """
    units = list(plan_stages([arch.depth])[0].units)
    if whole_last_block and arch.depth > 1:
        units[units.index(f"block {arch.depth - 1}")] = "block 0"
    return 3 * sum(count_forward_flops(arch, unit) for unit in units)


def rows(precision: str, measured: Dict[str, Any], rates: Dict[str, float]) -> List[List[object]]:
    """One line of the table for each contender."""
    # bf16 numbers may be multiplied in fp32, where the processor is quicker at it.
    rate = max(rates.values()) if precision == "bf16.32" else rates[precision]
    lines = []
    for name, speeds in measured["images_per_second"].items():
        flops = measured["flops_per_image"][name]
        share = spread(speeds)["median"] * flops / rate
        against = "" if name == OURS else f"{spread(ratios(measured, name))['median']:.3f}"
        cells = [precision, name, len(speeds), *shown(speeds, "{:.3f}".format)]
        lines.append([*cells, against, f"{flops / 1e9:.1f}", f"{share:.0%}"])
    return lines


def ratios(measured: Dict[str, Any], peer: str) -> List[float]:
    """Our speed over a peer's, round by round."""
    speeds = measured["images_per_second"]
    return [ours / theirs for ours, theirs in zip(speeds[OURS], speeds[peer])]


def verdict(precision: str, measured: Dict[str, Any]) -> str:
    ratio = min(spread(ratios(measured, peer))["median"] for peer in measured["images_per_second"] if peer != OURS)
    return f"{precision}: {ratio:.3f} x the better peer; target, at least {TARGET:.1f}: {'met' if ratio >= TARGET else 'missed'}"


if __name__ == "__main__":
    raise SystemExit(main())
