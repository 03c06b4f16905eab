"""CPU seconds an image of the pipeline over `single`, same model and batches, one thread a process.

    python benchmarks/pipeline_overhead.py [--stages 4] [--rounds 15] [--json FILE]

The CPU time of all threads of all workers counts, so the figure holds on a machine with fewer cores than stages, where
the processes take turns; the wall-clock ratio says how much faster the pipeline is where it has the cores.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import cpu_name, random_batch, shown, spread, write_json  # noqa: E402
from config import Config, load_config  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.build import build_runtime  # noqa: E402

TARGET = 1.10
WARM_UP_STEPS = 2


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    contenders = {name: Contender(config_arguments(options, name)) for name in ("single", "pipeline")}
    rounds: List[Dict[str, Tuple[float, float]]] = []
    try:
        for contender in contenders.values():
            contender.measure(WARM_UP_STEPS)
        for index in range(options.rounds):
            # Each goes first in turn: what the machine does beside us hits both.
            order = list(contenders)[:: 1 if index % 2 == 0 else -1]
            rounds.append({name: contenders[name].measure(options.steps) for name in order})
    finally:
        for contender in contenders.values():
            contender.close()
    report(options, contenders["pipeline"].config, rounds)
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
    add("--rounds", type=int, default=15, help="measurements of each (default: 15)")
    add("--steps", type=int, default=1, help="weight updates a measurement (default: 1)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def config_arguments(options: argparse.Namespace, runtime: str) -> List[str]:
    """Command-line flags of a config for one contender."""
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
        "ipus-per-replica": options.stages,
        "schedule": options.schedule,
        "precision": options.precision,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return words + ["--layers-per-ipu"] + [str(options.depth // options.stages)] * options.stages


class Contender:
    """The processes of one runtime, which take turns with the other's: idle until told to measure."""

    def __init__(self, arguments: List[str]) -> None:
        self.config = load_config("pretrain", arguments)
        num_processes = place(self.config).num_processes
        # Read when the library is loaded: in the processes' common parent, before it imports torch.
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        context = get_context("forkserver")
        context.set_forkserver_preload(["runtime.pipeline", "config"])
        port = _free_port()
        self._pipes, self._workers = [], []
        for rank in range(num_processes):
            ours, theirs = context.Pipe()
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
            worker = context.Process(target=_work, args=(arguments, world, theirs), daemon=True)
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._workers.append(worker)

    def measure(self, steps: int) -> Tuple[float, float]:
        """(CPU seconds of all processes, wall-clock seconds) of some host steps."""
        for pipe in self._pipes:
            pipe.send(steps)
        answers = [pipe.recv() for pipe in self._pipes]
        return sum(cpu for cpu, _ in answers), max(wall for _, wall in answers)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(0)
        for worker in self._workers:
            worker.join()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(arguments: List[str], world: Dict[str, int], pipe: Any) -> None:
    """Body of a worker: builds its part of the runtime, then runs as many host steps as it is told, until 0."""
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    config = load_config("pretrain", arguments)
    runtime = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)
    update = 0
    for steps in iter(pipe.recv, 0):
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            runtime.train_step(batch, 1e-3, update)
            update += 1
        pipe.send((time.process_time() - cpu, time.perf_counter() - wall))
    runtime.close()


def report(options: argparse.Namespace, config: Config, rounds: List[Dict[str, Tuple[float, float]]]) -> None:
    images = options.steps * config.samples_per_step
    cpu = {name: [1e3 * figures[name][0] / images for figures in rounds] for name in ("single", "pipeline")}
    wall = {name: [1e3 * figures[name][1] / images for figures in rounds] for name in ("single", "pipeline")}
    ratio = [ours / alone for ours, alone in zip(cpu["pipeline"], cpu["single"])]
    wall_ratio = [ours / alone for ours, alone in zip(wall["pipeline"], wall["single"])]
    rows = [
        ["single, CPU ms an image", *shown(cpu["single"], "{:.3f}".format)],
        [f"pipeline of {options.stages}, CPU ms an image", *shown(cpu["pipeline"], "{:.3f}".format)],
        ["CPU ratio, round by round", *shown(ratio, "{:.3f}".format)],
        ["wall-clock ratio", *shown(wall_ratio, "{:.3f}".format)],
    ]
    print(
        f"{cpu_name()}, {os.cpu_count()} cores; width {options.width}, depth {options.depth}, {options.image_size} px, "
        f"patch {options.patch_size}, {options.accumulation} micro-batches of {options.micro_batch}, {options.schedule}, "
        f"{options.precision}, AdamW; {options.rounds} rounds of {options.steps} weight updates"
    )
    print(table(["", "median", "min", "max"], rows))
    verdict = "met" if spread(ratio)["median"] <= TARGET else "missed"
    print(f"target: a CPU ratio of at most {TARGET:.2f} in the median: {verdict}")
    figures = {"cpu": cpu_name(), "options": vars(options), "cpu_ms_per_image": cpu, "wall_ms_per_image": wall}
    write_json(options.json, {**figures, "cpu_ratio": spread(ratio), "wall_ratio": spread(wall_ratio)})


if __name__ == "__main__":
    raise SystemExit(main())
