"""Seconds of `--help` of each command, and from the command to its first training step.

    python benchmarks/start_up.py [--rounds 5] [--json FILE]

New processes, one after the other, in turns with one that only imports torch: most of a start is that.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.facts import cpu_name, shown, spread, write_json  # noqa: E402
from machine import num_cores  # noqa: E402
from reporting.tables import table  # noqa: E402

COMMANDS = ("pretrain", "finetune", "validation", "predict", "plan", "verify", "convert")
CONFIGS = ("digits", "digits_single")
TORCH = "python -c 'import torch'"
FIRST_STEP = "Step: 1/"
HELP_TARGET, STEP_TARGET = 0.5, 8.0  # seconds


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    seconds: Dict[str, List[float]] = {}
    for _ in range(options.rounds):
        for command in COMMANDS:
            seconds.setdefault(f"{command}.py --help", []).append(until_end(f"{command}.py", "--help"))
        seconds.setdefault(TORCH, []).append(until_end("-c", "import torch"))
        for config in CONFIGS:
            seconds.setdefault(f"pretrain.py --config {config}", []).append(until_first_step(config))
    print(f"{cpu_name()}, {num_cores()} cores; {options.rounds} rounds")
    print(table(("command", "seconds", "min", "max", "target"), [row(name, seconds[name]) for name in seconds]))
    write_json(options.json, {"cpu": cpu_name(), "cores": num_cores(), "seconds": seconds})
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def until_end(*words: str) -> float:
    """Seconds of `python words...`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def until_first_step(config: str) -> float:
    """Seconds until a run prints its first step, with all reports and checkpoints as by default. It ends after two."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["pretrain.py", "--config", config, "--training-steps", "2", "--epochs", "0", "--device", "cpu"]
        words += ["--checkpoint-output-dir", f"{folder}/run"]
        begun = time.perf_counter()
        with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            lines = iter(run.stdout)
            if not any(FIRST_STEP in line for line in lines):
                raise SystemExit(f"error: {' '.join(words)} ended without a step.")
            seconds = time.perf_counter() - begun
            for _ in lines:
                pass
    return seconds


def row(name: str, values: Sequence[float]) -> List[str]:
    limit = HELP_TARGET if "--help" in name else None if name == TORCH else STEP_TARGET
    met = "" if limit is None else f"{limit:g}: {'met' if spread(values)['median'] < limit else 'missed'}"
    return [name, *shown(values, lambda value: f"{value:.2f}"), met]


if __name__ == "__main__":
    sys.exit(main())
