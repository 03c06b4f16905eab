"""CPU seconds an image of the pipeline over `single`, same model and batches, one thread a process.

    python benchmarks/pipeline_overhead.py [--stages 4] [--rounds 7] [--json FILE]

The CPU time of all threads of all workers counts, so the figure holds on a machine with fewer cores than stages, where
the processes take turns. Cores that work at once slow each other down (caches, memory): what of the ratio is that, and not the
pipeline's doing, shows beside `single` in a copy on every core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import cpu_name, shown, spread, write_json  # noqa: E402
from benchmarks.workers import Order, Workers, runtime_workers  # noqa: E402
from config import load_config  # noqa: E402
from machine import num_cores  # noqa: E402
from reporting.tables import table  # noqa: E402

ALONE, PIPELINE, COPIES = "single, alone", "pipeline", "single, a copy on every core"
TARGET = 1.05
WARM_UP_STEPS = 2
Measured = Tuple[float, float]  # CPU and wall-clock seconds


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    copies = min(options.stages, num_cores())
    singles = [runtime_workers(config_arguments(options, "single")) for _ in range(copies)]
    pipeline = runtime_workers(config_arguments(options, "pipeline"))
    contenders = {ALONE: singles[:1], PIPELINE: [pipeline], COPIES: singles}
    rounds: List[Dict[str, Measured]] = []
    try:
        measure([*singles, pipeline], WARM_UP_STEPS)
        for index in range(options.rounds):
            # Forwards and backwards in turn: what the machine does beside us hits all.
            order = list(contenders)[:: 1 if index % 2 == 0 else -1]
            rounds.append({name: measure(contenders[name], options.steps) for name in order})
    finally:
        for workers in [*singles, pipeline]:
            workers.close()
    images = load_config("pretrain", config_arguments(options, "pipeline")).samples_per_step
    report(options, copies, images, rounds)
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--width", type=int, default=192)
    add("--depth", type=int, default=12, help="encoder blocks (default: 12)")
    add("--heads", type=int, default=3)
    add("--mlp-dim", type=int, default=768)
    add("--image-size", type=int, default=64, help="side in pixels (default: 64)")
    add("--patch-size", type=int, default=8, help="side in pixels (default: 8)")
    add("--labels", type=int, default=10)
    add("--micro-batch", type=int, default=8, help="images (default: 8)")
    add("--accumulation", type=int, default=16, help="micro-batches a weight update (default: 16)")
    add("--stages", type=int, default=4, help="pipeline processes; they divide the depth (default: 4)")
    add("--schedule", default="1f1b", choices=("1f1b", "gpipe"))
    add("--precision", default="32.32", choices=("32.32", "bf16.32"))
    add("--rounds", type=int, default=7, help="measurements of each (default: 7)")
    add("--steps", type=int, default=1, help="weight updates a measurement (default: 1)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def config_arguments(options: argparse.Namespace, runtime: str, layers: Sequence[int] = ()) -> List[str]:
    """Command-line flags of a config for one contender; `layers`: blocks of each stage, else equally many."""
    layers = layers or [options.depth // options.stages] * options.stages
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": "generated_ti16",
        "runtime": runtime,
        "device": "cpu",
        "threads-per-process": 1,
        "hidden-size": options.width,
        "num-hidden-layers": options.depth,
        "num-attention-heads": options.heads,
        "mlp-dim": options.mlp_dim,
        "image-size": options.image_size,
        "patches-size": options.patch_size,
        "num-labels": options.labels,
        "micro-batch-size": options.micro_batch,
        "gradient-accumulation": options.accumulation,
        "ipus-per-replica": len(layers),
        "schedule": options.schedule,
        "precision": options.precision,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*words, "--layers-per-ipu", *map(str, layers)]


def measure(group: List[Workers], steps: int) -> Measured:
    """Some host steps of all of the group at once, in the mean: the CPU time of all processes, the wall clock of the slowest."""
    for workers in group:
        workers.start(Order(steps))
    answers = [workers.answers() for workers in group]
    cpu = sum(step.cpu_seconds for steps_of_one in answers for step in steps_of_one)
    wall = sum(max(step.seconds for step in steps_of_one) for steps_of_one in answers)
    return cpu / len(group), wall / len(group)


def report(options: argparse.Namespace, copies: int, images: int, rounds: List[Dict[str, Measured]]) -> None:
    cpu = {name: [1e3 * figures[name][0] / images for figures in rounds] for name in rounds[0]}
    ratios = {
        "CPU, pipeline / single alone": _ratios(rounds, ALONE, 0),
        "CPU, pipeline / single in copies": _ratios(rounds, COPIES, 0),
        "wall clock, pipeline / single alone": _ratios(rounds, ALONE, 1),
    }
    print(
        f"{cpu_name()}, {num_cores()} cores; width {options.width}, depth {options.depth}, {options.image_size} px, "
        f"patch {options.patch_size}, {options.stages} stages, {options.accumulation} micro-batches of {options.micro_batch}, "
        f"{options.schedule}, {options.precision}, AdamW; {options.rounds} rounds"
    )
    rows = [[f"{name}, CPU ms an image", *shown(values, "{:.2f}".format)] for name, values in cpu.items()]
    rows += [[name, *shown(values, "{:.3f}".format)] for name, values in ratios.items()]
    print(table(["", "median", "min", "max"], rows))
    verdict = "met" if spread(next(iter(ratios.values())))["median"] <= TARGET else "missed"
    print(f"target, beside single alone: a CPU ratio of at most {TARGET:.2f} in the median: {verdict}")
    figures = {"cpu": cpu_name(), "cores": num_cores(), "copies": copies, "options": vars(options)}
    medians = {name: spread(values) for name, values in ratios.items()}
    write_json(options.json, {**figures, "cpu_ms_per_image": cpu, "ratios": medians})


def _ratios(rounds: List[Dict[str, Measured]], base: str, clock: int) -> List[float]:
    """The pipeline's time over another's, round by round, by one of the two clocks."""
    return [figures[PIPELINE][clock] / figures[base][clock] for figures in rounds]


if __name__ == "__main__":
    raise SystemExit(main())
