"""The pipeline's images a second beside their ideal, and its idle share beside the formula, for each schedule.

    python benchmarks/pipeline_bubble.py [--micro-batches 4 8 16] [--rounds 5] [--json FILE]

One process of one thread a core, no stage more. The ideal is `single` in a copy on every core, times 1 - bubble, with the
bubble (p - 1) / (v m + p - 1) of p processes, v stages each and m micro-batches: the rest is what splitting costs. Beside it
the idle share between the first forward and the last backward pass, as a report's timeline measures it, and as
`planning` simulates it from the measured times of the stages' passes. Run it with free cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import cpu_name, spread, write_json  # noqa: E402
from benchmarks.pipeline_overhead import config_arguments  # noqa: E402
from benchmarks.workers import Order, Step, Workers, runtime_workers  # noqa: E402
from config import load_config  # noqa: E402
from insight.timeline import measured_timeline  # noqa: E402
from machine import num_cores  # noqa: E402
from placement import place  # noqa: E402
from planning.balance import balance  # noqa: E402
from planning.machines import this_machine  # noqa: E402
from planning.schedule import bubble, idle_share, orders_of, simulate  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.base import Trace  # noqa: E402

SCHEDULES = {"gpipe": 1, "1f1b": 1, "interleaved": 2}  # stages a process
TARGET = 0.90


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    found = [row for count in options.micro_batches for row in measure(options, count)]
    report(options, found)
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--width", type=int, default=192)
    add("--depth", type=int, default=13, help="encoder blocks; the last costs little (default: 13)")
    add("--heads", type=int, default=3)
    add("--mlp-dim", type=int, default=768)
    add("--image-size", type=int, default=64, help="side in pixels (default: 64)")
    add("--patch-size", type=int, default=8, help="side in pixels (default: 8)")
    add("--labels", type=int, default=10)
    add("--micro-batch", type=int, default=4, help="images (default: 4)")
    add("--micro-batches", type=int, nargs="+", default=[4, 8, 16], help="of a weight update (default: 4 8 16)")
    add("--processes", type=int, default=max(2, num_cores()), help="of the pipeline (default: as many as cores)")
    add("--precision", default="32.32", choices=("32.32", "bf16.32"))
    add("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, micro_batches: int) -> List[Dict[str, Any]]:
    """A row for each schedule with so many micro-batches: all and `single` in turns."""
    flags = {name: _arguments(options, micro_batches, "pipeline", name) for name in SCHEDULES}
    singles = [runtime_workers(_arguments(options, micro_batches, "single")) for _ in range(options.processes)]
    pipelines = {name: runtime_workers(flags[name]) for name in SCHEDULES}
    groups = {"single": singles, **{name: [workers] for name, workers in pipelines.items()}}
    rounds: List[Dict[str, List[List[Step]]]] = []
    try:
        for index in range(options.rounds + 1):
            # Forwards and backwards in turn: what the machine does beside us hits all.
            order = list(groups)[:: 1 if index % 2 == 0 else -1]
            rounds.append({name: run(groups[name]) for name in order})
    finally:
        for workers in [*singles, *pipelines.values()]:
            workers.close()
    # The first round warms up.
    return [row_of(name, load_config("pretrain", flags[name]), rounds[1:]) for name in pipelines]


def _arguments(options: argparse.Namespace, micro_batches: int, runtime: str, schedule: str = "1f1b") -> List[str]:
    """Flags of one contender, with the split of the blocks that `plan.py --balance` finds."""
    stages = options.processes * SCHEDULES[schedule]
    own = argparse.Namespace(**{**vars(options), "schedule": schedule, "accumulation": micro_batches})
    layers = [options.depth // stages] * (stages - 1)
    layers.append(options.depth - sum(layers))
    planned = load_config("pretrain", config_arguments(own, "pipeline", layers))
    return config_arguments(own, runtime, balance(planned, this_machine(0), None)[1].layers)


def run(group: List[Workers]) -> List[List[Step]]:
    """One host step of all of a group at once: what each process of each answers."""
    for workers in group:
        workers.start(Order(1, is_traced=True))
    return [workers.answers() for workers in group]


def row_of(name: str, config: Any, rounds: Sequence[Dict[str, List[List[Step]]]]) -> Dict[str, Any]:
    """What one schedule's rounds say."""
    placement = place(config)
    size, chunks, micro_batches = placement.pipeline_size, SCHEDULES[name], config.gradient_accumulation
    formula = bubble(size, micro_batches, chunks)
    images = config.samples_per_step
    rates, shares, idle, simulated = [], [], [], []
    for answers in rounds:
        (own,) = answers[name]
        ideal = sum(images / step.seconds for (step,) in answers["single"]) * (1 - formula)
        rates.append(images / max(step.seconds for step in own))
        shares.append(rates[-1] / ideal)
        traces = [step.trace for step in own if step.trace is not None]
        idle.append(measured_timeline(config, placement, 0, traces).bubble or 0.0)
        simulated.append(_simulated(name, size, len(placement.parts), micro_batches, traces))
    return {
        "schedule": name,
        "micro_batches": micro_batches,
        "layers": list(config.stage_layers),
        "images_per_second": spread(rates),
        "of_ideal": spread(shares),
        "formula": formula,
        "simulated": median(simulated),
        "measured": spread(idle),
    }


def _simulated(name: str, size: int, num_parts: int, micro_batches: int, traces: Sequence[Trace]) -> float:
    """The idle share where every pass of a part takes as long as its passes took on the average."""
    pieces = [piece for trace in traces for piece in trace.pieces]

    def mean(kind: str, part: int) -> float:
        seconds = [piece.end - piece.begin for piece in pieces if (piece.kind, piece.part) == (kind, part)]
        return sum(seconds) / len(seconds)

    ahead, back = ([mean(kind, part) for part in range(num_parts)] for kind in ("forward", "backward"))
    return idle_share(simulate(orders_of(name, size, num_parts, micro_batches), ahead, back), size)


def report(options: argparse.Namespace, found: List[Dict[str, Any]]) -> None:
    print(
        f"{cpu_name()}, {num_cores()} cores; width {options.width}, depth {options.depth}, {options.image_size} px, "
        f"patch {options.patch_size}, {options.processes} processes, micro-batches of {options.micro_batch}, "
        f"{options.precision}, AdamW; {options.rounds} rounds"
    )
    names = ["schedule", "micro-batches", "blocks", "images/s", "of ideal", "min", "max"]
    rows = [
        [
            *(row["schedule"], str(row["micro_batches"]), " ".join(map(str, row["layers"]))),
            f"{row['images_per_second']['median']:.1f}",
            *(f"{value:.1%}" for value in row["of_ideal"].values()),
            *(f"{row[name]:.1%}" for name in ("formula", "simulated")),
            f"{row['measured']['median']:.1%}",
        ]
        for row in found
    ]
    print(table([*names, "idle: formula", "simulated", "measured"], rows))
    least = min(row["of_ideal"]["median"] for row in found)
    verdict = "met" if least >= TARGET else "missed"
    print(
        f"target: at least {TARGET:.0%} of the ideal in every row, in the median: {verdict} ({least:.1%} in the lowest)"
    )
    write_json(options.json, {"cpu": cpu_name(), "cores": num_cores(), "options": vars(options), "rows": found})


if __name__ == "__main__":
    raise SystemExit(main())
