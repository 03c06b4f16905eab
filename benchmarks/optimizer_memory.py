"""Bytes a parameter of weights, gradients and optimiser state, for each precision and optimiser, measured.

    python benchmarks/optimizer_memory.py [--replicas 2] [--json FILE]

Each row is a process of its own that trains a few steps. What lives when the gradients of an update are complete is counted,
tensor by tensor, as the garbage collector knows them: a copy that nobody thought of counts, too. "in the update" is what lives
while the optimiser is at work, with the weights that are widened at the time.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_pre_hook  # noqa: E402

from benchmarks.facts import random_batch, write_json  # noqa: E402
from config import load_config  # noqa: E402
from launch import free_port  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.build import build_runtime  # noqa: E402

STEPS = 3
HALF_STATE = ("--first-order-type", "fp16")  # as the app's fine-tuning configs
ROWS: List[Tuple[str, str, Tuple[str, ...]]] = [
    *[(precision, name, ()) for precision in ("32.32", "bf16.32") for name in ("SGD", "AdamW", "LAMB", "Lion", "Muon")],
    *[("16.32", name, ()) for name in ("SGD", "AdamW")],
    *[("16.16", name, ()) for name in ("SGD", "AdamW", "LAMB", "Lion", "Muon")],
    ("16.16", "SGD", HALF_STATE),
    ("16.16", "SGD", ("--use-combined-accum", "true")),
    ("16.16", "SGD", ("--momentum", "0")),
    ("16.16", "Lion", HALF_STATE),
    ("bf16.16", "AdamW", ()),
    ("bf16.16", "AdamW", (*HALF_STATE, "--second-order-type", "fp16")),
]
SHARDED = [("32.32", "AdamW", ()), ("bf16.32", "AdamW", ()), ("16.16", "SGD", HALF_STATE), ("16.16", "AdamW", ())]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=2, help="that state is sharded over, in some rows (default: 2)")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    rows: List[Dict[str, Any]] = []
    for replicas, row in [*((1, row) for row in ROWS), *((options.replicas, row) for row in SHARDED)]:
        precision, optimizer, keys = row
        kept, peak = max(run(row, replicas))  # of the fullest replica
        settings = " ".join(keys).replace("--", "")
        rows.append({"precision": precision, "optimizer": optimizer, "settings": settings, "replicas": replicas})
        rows[-1].update(kept=kept, peak=peak)
        print(
            f"{len(rows)} of {len(ROWS) + len(SHARDED)}: {precision} {optimizer} {settings}",
            file=sys.stderr,
            flush=True,
        )
    headers = ["precision", "optimizer", "with", "state over", "bytes a parameter", "in the update"]
    cells = [
        [
            row["precision"],
            row["optimizer"],
            row["settings"],
            row["replicas"],
            f"{row['kept']:.2f}",
            f"{row['peak']:.2f}",
        ]
        for row in rows
    ]
    print(table(headers, cells))
    write_json(options.json, {"rows": rows})
    return 0


def run(row: Tuple[str, str, Tuple[str, ...]], replicas: int) -> List[Tuple[float, float]]:
    """Bytes a parameter of each replica's process: kept between updates, and within one."""
    precision, optimizer, keys = row
    arguments = ["--config", "generated_s16", "--config-file", str(ROOT / "configs.yaml"), "--image-size", "32"]
    arguments += ["--device", "cpu", "--precision", precision, "--optimizer", optimizer, "--micro-batch-size", "1"]
    arguments += ["--gradient-accumulation", "2", "--ipus-per-replica", "1", "--layers-per-ipu", "12", *keys]
    arguments += ["--replication-factor", str(replicas), "--enable-rts", "true"]
    arguments += ["--runtime", "pipeline" if replicas > 1 else "single"]
    port = str(free_port())
    context = get_context("forkserver")
    context.set_forkserver_preload(["runtime.pipeline", "runtime.single", "config"])
    with context.Pool(replicas) as pool:
        return pool.starmap(measure, [(arguments, rank, replicas, port) for rank in range(replicas)], chunksize=1)


def measure(arguments: List[str], rank: int, replicas: int, port: str) -> Tuple[float, float]:
    """Trains in this process, one of `replicas`."""
    if replicas > 1:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": replicas, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    config = load_config("pretrain", arguments)
    runtime: Any = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)
    update, apply = runtime.update, runtime.update.apply
    own = {id(value) for value in vars(batch).values()}
    lives: List[int] = []
    peaks: List[int] = []

    def counting_apply(learning_rate: float) -> None:
        lives.append(live_bytes(own, update.parameters.values()))
        apply(learning_rate)

    update.apply = counting_apply
    register_optimizer_step_pre_hook(lambda *_: peaks.append(live_bytes(own, update.parameters.values())))
    for step in range(STEPS):
        runtime.train_step(batch, 1e-3, step)
    runtime.close()
    count = sum(parameter.numel() for parameter in update.parameters.values())
    return lives[-1] / count, max([*peaks, lives[-1]]) / count


def live_bytes(left_out: Any, parameters: Any) -> int:
    """Of all tensors that Python can reach, each memory once; `left_out` are ids of tensors that do not count."""
    tensors = [
        found for found in gc.get_objects() if issubclass(type(found), torch.Tensor) and id(found) not in left_out
    ]
    tensors += [parameter.grad for parameter in parameters if parameter.grad is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


if __name__ == "__main__":
    raise SystemExit(main())
