"""Resident memory of loader processes over a data set of millions of images, beside one of a few.

    python benchmarks/loader_memory.py [--samples 10000000] [--workers 8] [--batches 200]

The index is a real one, of a folder with paths like ImageNet's; the files are not there: each path is looked up, and the same
small JPEG is decoded in its place.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path
from typing import Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import simplejpeg  # noqa: E402

import machine  # noqa: E402
from batch import DataShare  # noqa: E402
from benchmarks.facts import cpu_name, write_json  # noqa: E402
from config import Config, load_config  # noqa: E402
from dataset.base import Encoded  # noqa: E402
from dataset.loader import TrainLoader  # noqa: E402
from dataset.sources.folder import ImageFolder  # noqa: E402
from dataset.sources.index import Index, write_index  # noqa: E402
from reporting.tables import table  # noqa: E402

CLASSES = [f"n{number:08}" for number in range(1000)]
TARGET = 150  # MB over an empty worker
FEW = 4096


class SameImage(ImageFolder):
    """Looks every path up, and gives one image for all."""

    content = simplejpeg.encode_jpeg(np.zeros((64, 64, 3), dtype=np.uint8))

    def item(self, index: int) -> Encoded:
        return Encoded(self.content, self.path(index))


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    warnings.filterwarnings(
        "ignore", message="This DataLoader will create"
    )  # more than there are cores: memory is the question
    machine.num_cores = lambda: options.workers  # no more workers than cores would be started
    rows = []
    for samples in (FEW, options.samples):
        with tempfile.TemporaryDirectory() as folder:
            write_synthetic_index(Path(folder), samples)
            source = SameImage(Path("/data/train"), Index(Path(folder)), CLASSES)
            rows.append({"samples": samples, **measure(source, configured(options), options.batches)})
    over = {key: rows[1][key] - rows[0][key] for key in ("resident", "own")}
    print(
        f"{cpu_name()}; {options.workers} loader processes, {options.batches} batches of 256 read; MB a process, the largest"
    )
    cells = [[f"{row['samples']:,}", f"{row['resident']:.0f}", f"{row['own']:.0f}"] for row in rows]
    print(table(["images", "resident", "its own"], [*cells, ["more", f"{over['resident']:.0f}", f"{over['own']:.0f}"]]))
    print(f"target: less than {TARGET} MB more resident: {'met' if over['resident'] < TARGET else 'missed'}")
    write_json(options.json, {"rows": rows, "over": over})
    return 0


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--samples", type=int, default=10_000_000, help="images of the large set (default: 10,000,000)")
    add("--workers", type=int, default=8, help="loader processes (default: 8)")
    add("--batches", type=int, default=200, help="batches of 256 that are read (default: 200)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def write_synthetic_index(folder: Path, samples: int) -> None:
    labels = (np.arange(samples, dtype=np.int64) * len(CLASSES) // samples).astype(np.int32)
    names = (f"{CLASSES[label]}/{CLASSES[label]}_{number:08}.JPEG" for number, label in enumerate(labels))
    write_index(folder, names, {"labels": labels}, {"classes": CLASSES})


def configured(options: argparse.Namespace) -> Config:
    flags = f"--config generated_s16 --dataset folder --dataset-path /data --image-size 32 --micro-batch-size 256 \
        --gradient-accumulation 1 --dataloader-workers {options.workers}"
    return load_config("pretrain", ["--config-file", str(ROOT / "configs.yaml"), *flags.split()])


def measure(source: SameImage, config: Config, batches: int) -> Dict[str, float]:
    """MB of the largest loader process after some batches: all that is resident, and what it does not share."""
    loader = TrainLoader(source, config, DataShare((0,)))
    iterator = loader.epoch(0)
    for _ in islice(iterator, min(batches, loader.steps_per_epoch - 1)):
        pass
    workers = children()
    return {"resident": max(map(resident, workers)), "own": max(map(unshared, workers))}


def children() -> List[int]:
    return list(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def resident(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def unshared(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return (
        sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) * 1024 / 1e6
    )


if __name__ == "__main__":
    sys.exit(main())
