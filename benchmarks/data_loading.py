"""Images a second and core from JPEG files to training batches, beside torchvision's and timm's loaders.

    python benchmarks/data_loading.py [--images 256] [--rounds 7] [--json FILE]
    python benchmarks/data_loading.py --workers 16 --images 8192 [--gpu-rate 9000]     # all cores, by the clock, ours alone

Everyone reads the same files, cuts RandomResizedCrop(224) with bilinear antialiased resizing, mirrors half and makes batches of
64, each in a process of its own with one thread. Measured in CPU seconds, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # the user's cache of indexes stays as it is

import torch  # noqa: E402

import dataset.transforms.torchvision_operators  # noqa: E402, F401  (first: the peers import torchvision)
import machine  # noqa: E402
from batch import DataShare  # noqa: E402
from benchmarks.facts import cpu_name, shown, spread, write_json  # noqa: E402
from benchmarks.photos import write_photos  # noqa: E402
from config import load_config  # noqa: E402
from dataset.loader import TrainLoader  # noqa: E402
from dataset.registry import open_source  # noqa: E402
from models.vit import normalize_pixels  # noqa: E402
from reporting.tables import table  # noqa: E402

OURS, NORMALISED = "PipeViT, bytes", "PipeViT, normalised floats"
TORCHVISION, TIMM = "torchvision v2, floats", "timm create_loader, floats"
TARGET, BATCH = 2.0, 64
Turn = Callable[[], None]  # goes through all images once


def main(argv: Optional[Sequence[str]] = None) -> int:
    options = parse_options(argv)
    if options.workers:
        return all_cores(options)
    with tempfile.TemporaryDirectory() as folder:
        mean_bytes = write_photos(Path(folder) / "train", options.images, tuple(options.size))
        makers = {
            OURS: partial(ours, folder, options, normalised=False),
            NORMALISED: partial(ours, folder, options, normalised=True),
            TORCHVISION: partial(torchvision_turn, folder, options),
            TIMM: partial(timm_turn, folder, options),
        }
        contenders = {name: Contender(make) for name, make in makers.items()}
        for contender in contenders.values():  # warm-up: code is imported, files are in the page cache
            contender.turn()
        rates: Dict[str, List[float]] = {name: [] for name in contenders}
        for round_number in range(options.rounds):
            for name in list(contenders)[:: 1 if round_number % 2 == 0 else -1]:
                rates[name].append(options.images / contenders[name].turn())
        for contender in contenders.values():
            contender.close()
    report(options, rates, mean_bytes)
    return 0


class Contender:
    """A process of its own, so that none profits from another's settings; idle until its turn."""

    def __init__(self, make: Callable[[], Turn]) -> None:
        context = get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(make, theirs), daemon=True)
        self._process.start()

    def turn(self) -> float:
        """CPU seconds of going through all images once."""
        self._pipe.send(True)
        return float(self._pipe.recv())

    def close(self) -> None:
        self._pipe.send(False)
        self._process.join()


def _work(make: Callable[[], Turn], pipe: Any) -> None:
    torch.set_num_threads(1)
    turn = make()
    while pipe.recv():
        begun = time.process_time()
        turn()
        pipe.send(time.process_time() - begun)


def parse_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, default=256, help="files, a multiple of 64 (default: 256)")
    add("--size", type=int, nargs=2, default=(500, 375), help="of the files, width and height (default: 500 375)")
    add("--rounds", type=int, default=7, help="measurements of each (default: 7)")
    add("--scale", type=float, nargs=2, default=(0.08, 1.0), help="of RandomResizedCrop (default: 0.08 1)")
    add("--workers", type=int, default=0, help="measure ours alone, by the clock, with so many loader processes")
    add("--gpu-rate", type=float, default=9000.0, help="images/s that the GPU trains on, beside it (default: 9000)")
    add("--json", default="", metavar="FILE", help="write the figures there too")
    return parser.parse_args(argv)


def all_cores(options: argparse.Namespace) -> int:
    """Images a second by the clock from loader processes to host batches, and the share of a GPU that they can feed."""
    with tempfile.TemporaryDirectory() as folder:
        mean_bytes = write_photos(Path(folder) / "train", options.images, tuple(options.size))
        turn, rates = ours(folder, options, normalised=False), []
        turn()  # warm-up: processes start, files come into the page cache
        for _ in range(options.rounds):
            begun = time.perf_counter()
            turn()
            rates.append(options.images / (time.perf_counter() - begun))
    width, height = options.size
    print(
        f"{cpu_name()}; {options.images} JPEG files of {width} x {height} pixels, {mean_bytes / 1000:.0f} kB each; "
        f"{min(options.workers, machine.num_cores())} loader processes on {machine.num_cores()} cores; {options.rounds} rounds"
    )
    share = f"{spread(rates)['median'] / options.gpu_rate:.0%}"
    columns = ["", "images/s", "min", "max", f"of a GPU's {options.gpu_rate:.0f} images/s"]
    print(table(columns, [[OURS, *shown(rates, lambda rate: f"{rate:.0f}"), share]]))
    write_json(options.json, {"cpu": cpu_name(), "mean_bytes": mean_bytes, "images_per_second": {OURS: rates}})
    return 0


def ours(folder: str, options: argparse.Namespace, normalised: bool) -> Turn:
    """This project's loader, by itself without loader processes. Pixels leave it as bytes: the device makes floats of them."""
    flags = {
        "config-file": ROOT / "configs.yaml", "config": "generated_s16", "dataset": "folder", "dataset-path": folder,
        "num-labels": 2, "micro-batch-size": BATCH, "horizontal-flip": "true", "gradient-accumulation": 1,
        "dataloader-workers": options.workers, "prefetch-batches": 8,
    }  # fmt: skip
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    config = load_config("pretrain", [*arguments, "--train-crop-scale", *map(str, options.scale)])
    machine.keep_freed_memory()  # as loader processes do
    loader = TrainLoader(open_source(config, "train"), config, DataShare((0,)))
    epochs = itertools.count()

    def turn() -> None:
        for batch in loader.epoch(next(epochs)):
            if normalised:
                normalize_pixels(batch.images)

    return turn


def torchvision_turn(folder: str, options: argparse.Namespace) -> Turn:
    """`ImageFolder`, v2 transforms in the order of torchvision's own recipe, and torch's DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.RandomResizedCrop(224, scale=tuple(options.scale), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    images = ImageFolder(f"{folder}/train", transform)
    return lambda: _exhaust(iter(torch.utils.data.DataLoader(images, BATCH, shuffle=True)))


def timm_turn(folder: str, options: argparse.Namespace) -> Turn:
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", f"{folder}/train"), input_size=(3, 224, 224), batch_size=BATCH, is_training=True,
        use_prefetcher=False, scale=tuple(options.scale), hflip=0.5, color_jitter=None, interpolation="bilinear",
        mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=0, persistent_workers=False,
    )  # fmt: skip
    return lambda: _exhaust(iter(loader))


def _exhaust(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


def report(options: argparse.Namespace, rates: Dict[str, List[float]], mean_bytes: float) -> None:
    medians = {name: spread(values)["median"] for name, values in rates.items()}
    best = max(medians[TORCHVISION], medians[TIMM])
    width, height = options.size
    print(
        f"{cpu_name()}; {options.images} JPEG files of {width} x {height} pixels, {mean_bytes / 1000:.0f} kB each; "
        f"RandomResizedCrop(224, {tuple(options.scale)}) and flip; one core; {options.rounds} rounds"
    )
    columns = ["", "images/s", "min", "max", "to the better peer"]
    rows = [
        [name, *shown(values, lambda rate: f"{rate:.0f}"), f"{medians[name] / best:.2f}"]
        for name, values in rates.items()
    ]
    print(table(columns, rows))
    ratio = medians[OURS] / best
    print(f"target: {TARGET:g} x the better peer: {'met' if ratio >= TARGET else 'missed'} ({ratio:.2f})")
    write_json(options.json, {"cpu": cpu_name(), "mean_bytes": mean_bytes, "images_per_second": rates, "ratio": ratio})


if __name__ == "__main__":
    sys.exit(main())
