"""What stochastic rounding costs of a training step: ViT-S/16, 224 px, batch 64, 16.16, SGD with momentum in 16 bits.

    python benchmarks/rounding_cost.py [--micro-batches 1 8] [--rounds 3] [--json FILE]

The time within every write of 16-bit numbers is measured in real steps, stochastically rounded and to the nearest in turns. With
several micro-batches the gradients' running mean is rounded after each of them, too.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.facts import cpu_name, random_batch, spread, write_json  # noqa: E402
from config import load_config  # noqa: E402
from optim.stochastic_rounding import Rounding  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.build import build_runtime  # noqa: E402

TARGET = 0.10  # of the step
NAMES = {True: "stochastic", False: "to the nearest"}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images a weight update (default: 64)")
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[1, 8], help="a weight update (default: 1 and 8)"
    )
    parser.add_argument("--precision", default="16.16", choices=("16.16", "bf16.16"))
    parser.add_argument("--rounds", type=int, default=3, help="steps of each kind (default: 3)")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    figures = {count: measure(options, count) for count in options.micro_batches}
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads; ViT-S/16, 224 px, batch {options.batch}, {options.precision}, SGD"
    )
    rows = [
        [count, NAMES[kind], f"{spread(steps)['median']:.2f} s", f"{spread(writes)['median']:.3f} s", f"{share:.1%}"]
        for count, kinds in figures.items()
        for kind, (steps, writes) in kinds.items()
        for share in [spread([write / step for write, step in zip(writes, steps)])["median"]]
    ]
    print(table(["micro-batches", "rounding", "step", "writing 16 bits", "share"], rows))
    worst = max(cost(kinds) for kinds in figures.values())
    verdict = "met" if worst < TARGET else "missed"
    print(f"cost of rounding stochastically: at most {worst:.1%} of a step; target, under {TARGET:.0%}: {verdict}")
    write_json(options.json, {"cpu": cpu_name(), "options": vars(options), "worst_share": worst})
    return 0


def cost(kinds: Dict[bool, Any]) -> float:
    """The share of a step with stochastic rounding that its writes take beyond those to the nearest."""
    (steps, stochastic), (_, nearest) = kinds[True], kinds[False]
    return float((spread(stochastic)["median"] - spread(nearest)["median"]) / spread(steps)["median"])


def measure(options: argparse.Namespace, micro_batches: int) -> Dict[bool, Any]:
    """For both kinds of rounding: the seconds of each step, and those within its writes."""
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": "generated_s16",
        "runtime": "single",
        "device": "cpu",
        "precision": options.precision,
        "optimizer": "SGD",
        "first-order-type": "fp16",
        "micro-batch-size": options.batch // micro_batches,
        "gradient-accumulation": micro_batches,
    }
    config = load_config("pretrain", [word for name, value in flags.items() for word in (f"--{name}", str(value))])
    runtime: Any = build_runtime(config, place(config))
    rounding = runtime.update._rounding
    batch = random_batch(config, runtime.share)
    clock = Clock(rounding)
    runtime.train_step(batch, 1e-3, 0)  # memory is allocated in it
    kinds: Dict[bool, Any] = {True: ([], []), False: ([], [])}
    for turn in range(2 * options.rounds):
        rounding.stochastic = turn % 4 in (0, 3)  # forwards and backwards in turn
        clock.seconds, begun = 0.0, time.perf_counter()
        runtime.train_step(batch, 1e-3, turn + 1)
        steps, writes = kinds[rounding.stochastic]
        steps.append(time.perf_counter() - begun)
        writes.append(clock.seconds)
        print(f"step {turn + 1} of {2 * options.rounds}: {steps[-1]:.1f} s", file=sys.stderr, flush=True)
    return kinds


class Clock:
    """Adds up the time within a `Rounding`'s writes."""

    def __init__(self, rounding: Rounding) -> None:
        self.seconds = 0.0
        self._write = rounding.write
        rounding.write = self._timed  # type: ignore[method-assign]

    def _timed(self, *arguments: Any) -> None:
        begun = time.perf_counter()
        self._write(*arguments)
        self.seconds += time.perf_counter() - begun


if __name__ == "__main__":
    raise SystemExit(main())
