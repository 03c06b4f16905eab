"""The largest batch that one GPU trains on, with recomputation and without, by bisection: ViT-S/16 and B/16, 224 px.

    python benchmarks/gpu_memory.py [--sizes s16 b16] [--precisions bf16.32 16.16] [--json FILE]
    python benchmarks/gpu_memory.py --device cpu --tiny --most 12                      # tries the script: nothing is too large

Each try makes a new runtime and two weight updates. Blocks are not compiled (`--compile on` does), which takes more memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.facts import write_json  # noqa: E402
from benchmarks.gpu_facts import (  # noqa: E402
    add_device_options,
    check_device,
    device_name,
    facts,
    free_memory,
    our_config,
    our_runtime,
    our_turn,
)
from reporting.tables import table  # noqa: E402

HEADERS = ("model", "precision", "recomputation", "largest batch", "images/s there", "GiB there", "KiB an image")


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    check_device(options)
    figures = [
        measure(options, size, precision, recomputes)
        for size in options.sizes
        for precision in options.precisions
        for recomputes in (False, True)
    ]
    print(f"{device_name(options.device)}, torch {torch.__version__}")
    print(table(HEADERS, [row(figure) for figure in figures]))
    write_json(options.json, {**facts(options), "largest": figures})
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_options(parser)
    add = parser.add_argument
    add("--precisions", nargs="+", default=["bf16.32", "16.16"], help="default: bf16.32 16.16")
    add("--compile", default="off", choices=("off", "on"), help="compile the blocks (default: off)")
    add("--most", type=int, default=65_536, help="the largest batch that is tried (default: 65536)")
    add("--grain", type=float, default=0.05, help="bisect to this share of the batch (default: 0.05)")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace, size: str, precision: str, recomputes: bool) -> Dict[str, Any]:
    tries: Dict[int, Dict[str, float]] = {}

    def fits(batch: int) -> bool:
        try:
            tries[batch] = trained(options, size, precision, recomputes, batch)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            free_memory(options.device)
        return True

    largest = largest_that(fits, options.most, options.grain)
    return {"model": size, "precision": precision, "recomputes": recomputes, "batch": largest, **tries.get(largest, {})}


def largest_that(fits: Callable[[int], bool], most: int, grain: float) -> int:
    """The largest number up to `most` that fits, to within `grain` of it; 0: none does."""
    good, bad = 0, most + 1
    probe = min(8, most)
    while bad - good > max(1, grain * good):
        if fits(probe):
            good = probe
        else:
            bad = probe
        probe = (good + bad) // 2 if bad <= most or 2 * good > most else 2 * good
        if probe <= good:
            break
    return good


def trained(options: argparse.Namespace, size: str, precision: str, recomputes: bool, batch: int) -> Dict[str, float]:
    """Two weight updates at this batch size: the speed of the second, and the most bytes that tensors took."""
    keys = {"recompute_checkpoint_every_layer": str(recomputes).lower(), "compile": options.compile}
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runtime = our_runtime(our_config(options, size, precision, batch, **keys))
    turn = our_turn(runtime)
    turn(1)
    return {"images_per_second": batch / turn(1), "bytes": float(runtime.peak_memory()[0])}


def row(figure: Dict[str, Any]) -> List[object]:
    count, size = figure["batch"], figure.get("bytes", 0.0)
    an_image = f"{size / max(1, count) / 2**10:.0f}"
    recomputes = "every block" if figure["recomputes"] else "none"
    speed = f"{figure.get('images_per_second', 0.0):.0f}"
    return [figure["model"], figure["precision"], recomputes, count, speed, f"{size / 2**30:.1f}", an_image]


if __name__ == "__main__":
    raise SystemExit(main())
