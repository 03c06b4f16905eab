"""What plan.py's model predicts beside what is measured: small pipelines and replicas on this CPU, and published IPU figures.

    python benchmarks/scaling.py [--rounds 5] [--page docs/scaling.md] [--json FILE]

One thread a process. Columns say how far three predictions are from what is measured (predicted / measured - 1, the median over
rounds), and so what each part of the model is worth:

    plan      what `plan.py --machine cpu` says: matrix products measured for a second, times one efficiency
    single    the model with this machine's own rates: passes as fast as those of `single` on all cores at once, gloo's and the
              memory's bytes a second, each measured apart
    pieces    the simulation of the schedule alone, with passes and update as traced in the run of the same split with 8
              micro-batches: those runs check nothing but that simulation

Nothing is fitted to the runs that are predicted, but the one published figure that sets the IPU's efficiency.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import cpu_name, shown, spread, write_json  # noqa: E402
from benchmarks.markdown import markdown, write_section  # noqa: E402
from benchmarks.scaling_workers import Links, exchange, links_between, measure  # noqa: E402
from benchmarks.workers import Workers, runtime_workers  # noqa: E402
from config import Config, load_config  # noqa: E402
from machine import num_cores  # noqa: E402
from models.architecture import architecture_of  # noqa: E402
from placement import place  # noqa: E402
from planning.layout import layout_on  # noqa: E402
from planning.machines import Machine, named_machine, this_machine  # noqa: E402
from planning.published import FIGURES, LAYERS, Published  # noqa: E402
from planning.schedule import makespan, orders_of, simulate  # noqa: E402
from planning.throughput import predict, work_of  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.base import Trace  # noqa: E402
from runtime.block_speed import measured_block_rates  # noqa: E402

MICRO_BATCH, WIDTH, DEPTH = 4, 192, 8
IMAGES_A_TURN = 64  # of each process group: a second or two
WARM_UP_STEPS, TRACED = 1, 8
PRETRAINING_BATCH = 65_536  # images a weight update of the published pre-training


HEADERS = ("run", "micro-batches", "images/s", "min", "max", "plan", "single", "pieces", "")


class Point(NamedTuple):
    """A run that is measured: processes = stages x replicas, but for `interleaved`, which has two stages a process."""

    stages: int
    replicas: int
    micro_batches: int  # of a replica
    schedule: str = "1f1b"

    @property
    def processes(self) -> int:
        return self.replicas * (self.stages // 2 if self.schedule == "interleaved" else self.stages)

    @property
    def split(self) -> Tuple[int, int, int]:
        return self.stages, self.replicas, self.processes

    @property
    def name(self) -> str:
        replicas = f" x {self.replicas} replicas" if self.replicas > 1 else ""
        return f"{self.stages} stage{'s' * (self.stages > 1)}{replicas}, {self.schedule}"


POINTS = [
    *(Point(2, 1, count) for count in (2, 4, 8, 16)),
    Point(2, 1, 8, "gpipe"),
    Point(4, 1, 8, "interleaved"),
    Point(1, 2, 1),
    Point(1, 2, 8),
    Point(4, 1, 8),
    Point(2, 2, 8),
]
ALONE, ON_ALL_CORES = "alone", "on all cores"


class Round(NamedTuple):
    """A measurement of every run, and of all that the predictions are made of, one after the other."""

    images_per_second: Dict[Point, float]
    traces: Dict[Point, List[Trace]]
    rates: Dict[str, float]  # FLOP/s of one process of `single`: alone, on all cores
    links: Links
    block_rate: float  # FLOP/s of all cores together in an encoder block's training


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    load = os.getloadavg()[0]
    rounds = measure_all(options.rounds)
    rows = [*(cpu_row(point, rounds) for point in POINTS), *(published_row(figure) for figure in FIGURES)]
    inputs = {name: spread(values) for name, values in inputs_of(rounds).items()}
    about = (
        f"{cpu_name()}, {num_cores()} cores; width {WIDTH}, depth {DEPTH}, 65 tokens, micro-batches of {MICRO_BATCH}, float32, "
        f"AdamW; {options.rounds} rounds, load of the machine before them {load:.1f}. Inputs, medians: "
        + ", ".join(f"{name} {values['median']:.3g}" for name, values in inputs.items())
    )
    print(about, table(HEADERS, rows), sep="\n")
    if options.page:
        write_section(Path(options.page), "validation", f"{about}\n\n{markdown(HEADERS, rows)}")
    write_json(
        options.json, {"cpu": cpu_name(), "cores": num_cores(), "inputs": inputs, "headers": HEADERS, "rows": rows}
    )
    return 0


def inputs_of(rounds: Sequence[Round]) -> Dict[str, List[float]]:
    """What the predictions of all runs are made of."""
    return {
        "GFLOP/s of a block on all cores": [found.block_rate / 1e9 for found in rounds],
        "of `single` alone": [found.rates[ALONE] / 1e9 for found in rounds],
        "of each on all cores": [found.rates[ON_ALL_CORES] / 1e9 for found in rounds],
        "us a message": [found.links.latency * 1e6 for found in rounds],
        "GB/s in an all-reduce": [found.links.rate / 1e9 for found in rounds],
        "GB/s of memory": [found.links.memory_rate / 1e9 for found in rounds],
    }


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each run (default: 5)")
    parser.add_argument("--page", default="", metavar="FILE.md", help="write the table into this page, too")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def arguments_of(point: Point, runtime: str = "pipeline") -> List[str]:
    """Command-line flags of the config of a run."""
    flags = {
        "config-file": ROOT / "configs.yaml",
        "config": "generated_ti16",
        "runtime": runtime,
        "device": "cpu",
        "threads-per-process": 1,
        "hidden-size": WIDTH,
        "num-hidden-layers": DEPTH,
        "image-size": 64,
        "patches-size": 8,
        "num-labels": 10,
        "micro-batch-size": MICRO_BATCH,
        "gradient-accumulation": point.micro_batches,
        "replication-factor": point.replicas,
        "ipus-per-replica": point.stages,
        "schedule": point.schedule,
        "num-processes": point.processes if runtime == "pipeline" else 0,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*words, "--layers-per-ipu", *[str(DEPTH // point.stages)] * point.stages]


def measure_all(count: int) -> List[Round]:
    """All runs take turns, and are compared round by round: what the machine does beside us hits all."""
    singles = [runtime_workers(arguments_of(Point(1, 1, 1), "single")) for _ in range(num_cores())]
    runs = {point: runtime_workers(arguments_of(point)) for point in POINTS}
    pair = Workers(2, exchange)
    try:
        for workers in [*singles, *runs.values()]:
            measure([workers], WARM_UP_STEPS)
        return [_measure_round(number, singles, runs, pair) for number in range(count)]
    finally:
        for workers in [*singles, *runs.values(), pair]:
            workers.close()


def _measure_round(number: int, singles: List[Workers], runs: Dict[Point, Workers], pair: Workers) -> Round:
    config = config_of(POINTS[0])
    (block_rate,) = measured_block_rates(config, (config.precision,), seconds=1.0, runtime="pipeline").values()
    found = Round({}, {}, {}, links_between(pair), block_rate)
    for name, group in ((ALONE, singles[:1]), (ON_ALL_CORES, singles)):
        seconds, traces = measure(group, IMAGES_A_TURN // MICRO_BATCH)
        update = sum(piece.end - piece.begin for piece in traces[0].pieces if piece.kind == "update")
        found.rates[name] = MICRO_BATCH * flops_of_an_image() / (seconds - update)
    for point, workers in list(runs.items())[:: 1 if number % 2 == 0 else -1]:
        images = MICRO_BATCH * point.micro_batches * point.replicas
        seconds, found.traces[point] = measure([workers], max(1, IMAGES_A_TURN // images))
        found.images_per_second[point] = images / seconds
    return found


def config_of(point: Point) -> Config:
    return load_config("pretrain", arguments_of(point))


def flops_of_an_image() -> int:
    """Forward and backward of the whole model."""
    config = config_of(Point(1, 1, 1))
    return work_of(architecture_of(config), place(config).parts[0], trains=True).total


def cpu_row(point: Point, rounds: Sequence[Round]) -> List[str]:
    predictions = {
        "plan": [predicted(point, this_machine(0, None, {"fp32": found.block_rate})) for found in rounds],
        "single": [predicted(point, machine_like_single(point, found)) for found in rounds],
        "pieces": [predicted_from_pieces(point, found) for found in rounds] if has_pieces(point) else [],
    }
    measured = [found.images_per_second[point] for found in rounds]
    cells = [point.name, str(point.micro_batches), *shown(measured, "{:.1f}".format)]
    cells += [_error(prediction, measured) for prediction in predictions.values()]
    return [*cells, "" if has_pieces(point) else f"{point.processes} processes on {num_cores()} cores"]


def _error(predictions: Sequence[float], measured: Sequence[float]) -> str:
    """How far the predictions are from what was measured: the median over rounds."""
    if not predictions:
        return ""
    ratio = statistics.median(prediction / value for prediction, value in zip(predictions, measured))
    return f"{100 * (ratio - 1):+.1f} %".replace("-0.0 ", "0.0 ")


def predicted(point: Point, machine: Machine) -> float:
    config = config_of(point)
    rate = predict(config, layout_on(config, machine, None, place(config))).images_per_second
    assert rate is not None
    return rate


def machine_like_single(point: Point, found: Round) -> Machine:
    """This machine, whose cores compute as `single` did with as many of them busy."""
    rate = found.rates[ON_ALL_CORES]
    machine = this_machine(0, None, {"fp32": rate * num_cores()})
    links = found.links
    device = replace(
        machine.device, efficiency=1.0, link=links.rate, latency=links.latency, memory_rate=links.memory_rate
    )
    return replace(machine, device=device)


def has_pieces(point: Point) -> bool:
    """Not where processes share cores: the clock of a piece goes on while another process computes."""
    return point.processes <= num_cores()


def predicted_from_pieces(point: Point, found: Round) -> float:
    source = next(other for other in POINTS if other.split == point.split and other.micro_batches == TRACED)
    forward, backward, update = typical_pieces(found.traces[source], point.stages)
    size = point.processes // point.replicas
    events = simulate(orders_of(point.schedule, size, point.stages, point.micro_batches), forward, backward)
    images = MICRO_BATCH * point.micro_batches * point.replicas
    return images / (makespan(events) + update)


def typical_pieces(traces: Sequence[Trace], parts: int) -> Tuple[List[float], List[float], float]:
    """Median seconds of a pass of each part, forward and backward; and of the update, where none waits for another."""
    seconds: Dict[Tuple[str, int], List[float]] = {}
    updates = []
    for trace in traces:
        for piece in trace.pieces:
            seconds.setdefault((piece.kind, piece.part), []).append(piece.end - piece.begin)
            updates += [piece.end - piece.begin] if piece.kind == "update" else []
    forward, backward = (
        [statistics.median(seconds[kind, part]) for part in range(parts)] for kind in ("forward", "backward")
    )
    return forward, backward, min(updates)


def published_row(figure: Published) -> List[str]:
    """The prediction of `plan.py --machine`, beside what others have published."""
    config = load_config("plan", published_flags(figure))
    rate = predict(config, layout_on(config, named_machine(figure.machine, None), None)).images_per_second
    note = "sets the IPU's efficiency: no validation" if figure.sets_efficiency else ""
    name = f"{figure.machine}, published: {figure.what}"
    assert rate is not None
    images, error = f"{figure.images_per_second:,.0f}", _error([rate], [figure.images_per_second])
    return [name, str(figure.gradient_accumulation), images, "", "", error, "", "", note]


def published_flags(figure: Published) -> List[str]:
    """Of the recipe that it is of."""
    flags: Dict[str, Any] = {
        "config": "b16_in1k_pretrain_lamb" if figure.global_batch_size == PRETRAINING_BATCH else "b16_imagenet1k",
        "replication-factor": figure.num_ipus // len(LAYERS),
        "micro-batch-size": figure.micro_batch_size,
        "gradient-accumulation": figure.gradient_accumulation,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return ["--config-file", str(ROOT / "configs.yaml"), *words]


if __name__ == "__main__":
    raise SystemExit(main())
