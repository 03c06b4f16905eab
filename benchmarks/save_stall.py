"""What saving costs training: ViT-B/16 with AdamW state, written at once and in the background.

    python benchmarks/save_stall.py [--batch 8] [--rounds 2] [--folder DIR] [--json FILE]

A round is a step alone; a step with a save that training waits for; one with a save in the background, and the steps beside
which it is written. What a background save costs beyond its stall is what those steps take longer.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.facts import cpu_name, random_batch, write_json  # noqa: E402
from checkpoint import Progress  # noqa: E402
from config import load_config  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from run_folder import number_of, remove_steps, saved_steps  # noqa: E402
from runtime.build import build_runtime  # noqa: E402
from saving import Saver  # noqa: E402
from weights.card import card_of  # noqa: E402

Times = Dict[str, List[float]]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images a weight update (default: 8)")
    parser.add_argument("--rounds", type=int, default=2, help="(default: 2)")
    parser.add_argument("--precision", default="32.32")
    parser.add_argument(
        "--folder", default=None, metavar="DIR", help="where steps are written (default: a temporary one)"
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        times, num_bytes = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    step = statistics.median(times["step"])
    rows = []
    for kind, samples in times.items():
        seconds = statistics.median(samples)
        rows.append([kind, f"{seconds:.3f} s", f"{seconds / step:.3f}"])
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads; ViT-B/16, 224 px, batch {options.batch}, {options.precision}, AdamW: "
        f"{num_bytes / 1e9:.2f} GB a save"
    )
    print(table(["", "median", "of a step"], rows))
    write_json(options.json, {"cpu": cpu_name(), "options": vars(options), "seconds": times, "bytes": num_bytes})
    return 0


def measure(options: argparse.Namespace, folder: Path) -> tuple[Times, int]:
    """Seconds of everything, by what it is, and the size of a step."""
    flags = {
        "config-file": ROOT / "configs.yaml", "config": "b16_imagenet1k", "dataset": "generated", "runtime": "single",
        "device": "cpu", "precision": options.precision, "auto-loss-scaling": "false", "optimizer": "AdamW",
        "micro-batch-size": options.batch, "gradient-accumulation": 1, "replication-factor": 1, "device-iterations": 1,
        "checkpoint-save-steps": 1, "keep-last": 1,
    }  # fmt: skip
    config = load_config("pretrain", [word for name, value in flags.items() for word in (f"--{name}", str(value))])
    runtime: Any = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)
    kinds = {kind: config.model_copy(update={"background_save": kind}) for kind in (False, True)}
    savers = {kind: Saver(folder, runtime, kinds[kind], card_of(config), print) for kind in kinds}
    times: Times = {name: [] for name in ("step", "save, waited for", "save in the background: stall", "and in all")}
    num_bytes, number = 0, 0

    def step() -> float:
        nonlocal number
        begun = time.perf_counter()
        runtime.train_step(batch, 1e-3, number)
        number += 1
        return time.perf_counter() - begun

    step(), step()  # memory is allocated in them
    for turn in range(options.rounds + 1):
        alone = [step(), step()]
        waited = timed(lambda: savers[False].save(Progress(number)))
        begun = time.perf_counter()
        stall = timed(lambda: savers[True].save(Progress(number + 1)))
        beside = 0
        while not savers[True].poll():
            step()
            beside += 1
        extra = time.perf_counter() - begun - beside * statistics.mean(alone)
        savers[True].wait()
        num_bytes = sum(path.stat().st_size for path in saved_steps(folder)[-1].iterdir())
        remove_steps(folder, [number_of(step) for step in saved_steps(folder)])
        print(f"round {turn}: step {alone[-1]:.2f} s, waited {waited:.2f} s, stall {stall:.3f} s", file=sys.stderr)
        if turn:  # memory for the copies is found in the first round
            times["step"] += alone
            for name, seconds in zip(list(times)[1:], (waited, stall, extra)):
                times[name].append(seconds)
    return times, num_bytes


def timed(action: Any) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


if __name__ == "__main__":
    raise SystemExit(main())
