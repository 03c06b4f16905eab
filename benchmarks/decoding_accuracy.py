"""What scaled JPEG decoding does to accuracy: the same training run with it, and with Pillow's full decoding.

    python benchmarks/decoding_accuracy.py [--seeds 3] [--epochs 12]

scikit-learn's digits, drawn 256 pixels wide into JPEG files with noise, are learned at 32 pixels: decoding leaves out up to seven
eighths of each side.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import dataset.decode  # noqa: E402
from benchmarks.facts import cpu_name, write_json  # noqa: E402
from config import Config, load_config  # noqa: E402
from dataset.base import Encoded  # noqa: E402
from dataset.loader import EvalLoader, TrainLoader  # noqa: E402
from dataset.registry import open_source  # noqa: E402
from evaluation.evaluate import evaluate  # noqa: E402
from optimization import learning_rate_of  # noqa: E402
from placement import place  # noqa: E402
from reporting.tables import table  # noqa: E402
from runtime.build import build_runtime  # noqa: E402
from training import number_of_steps  # noqa: E402

SCALED, FULL = "simplejpeg, scaled", "Pillow, in full"
SIDE = 256
KEYS = {
    "config": "folder", "image-size": 32, "patches-size": 8, "hidden-size": 64, "num-hidden-layers": 4,
    "num-attention-heads": 4, "mlp-dim": 256, "num-labels": 10, "micro-batch-size": 64, "gradient-accumulation": 1,
    "horizontal-flip": "false", "learning-rate": 2e-3, "runtime": "single", "dataloader-workers": 0,
}  # fmt: skip


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    results: Dict[str, List[float]] = {SCALED: [], FULL: []}
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder))
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            config = configured(folder, options.epochs, seed)
            for name in results:
                results[name].append(accuracy(config, name))
                print(f"seed {seed}, {name}: {100 * results[name][-1]:.2f} %", flush=True)
    rows = [
        [name, *(f"{100 * value:.2f} %" for value in (statistics.mean(values), min(values), max(values)))]
        for name, values in results.items()
    ]
    print(f"{cpu_name()}; top-1 on 360 held-out digits after {options.epochs} epochs, {options.seeds} seeds")
    print(table(["", "mean", "min", "max"], rows))
    differences = [100 * (scaled - full) for scaled, full in zip(results[SCALED], results[FULL])]
    error = statistics.stdev(differences) / len(differences) ** 0.5 if options.seeds > 1 else float("nan")
    print(f"scaled decoding: {statistics.mean(differences):+.2f} points, standard error {error:.2f}")
    write_json(options.json, {"accuracy": results})
    return 0


def write_digits(root: Path) -> None:
    """Class folders of noisy JPEG files, 1,797 in all."""
    config = load_config(
        "pretrain", ["--config-file", str(ROOT / "configs.yaml"), "--config", "digits", "--validation-split", "0"]
    )
    source = open_source(config, "train")
    assert source is not None
    generator = np.random.default_rng(0)
    for index in range(len(source)):
        digit = Image.fromarray(source.item(index)[0].numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 20, (SIDE, SIDE, 3))
        pixels = (np.asarray(digit, dtype=np.float64)[:, :, None] * 0.8 + 25 + noise).clip(0, 255).astype(np.uint8)
        folder = root / "train" / str(source.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=85)


def configured(folder: str, epochs: int, seed: int) -> Config:
    arguments = [word for name, value in KEYS.items() for word in (f"--{name}", str(value))]
    more = ["--dataset-path", folder, "--validation-split", "0.2", "--epochs", str(epochs), "--random-seed", str(seed)]
    return load_config("pretrain", ["--config-file", str(ROOT / "configs.yaml"), *arguments, *more])


def accuracy(config: Config, decoder: str) -> float:
    """Top-1 of a run on the held-out images, which are decoded in the same way."""
    start = dataset.decode.JPEG_START
    if decoder == FULL:
        dataset.decode.JPEG_START = b"no file starts like this"
    try:
        check_decoder(decoder)
        return train(config)
    finally:
        dataset.decode.JPEG_START = start


def check_decoder(decoder: str) -> None:
    """That the switch works: a picture of the one kind comes scaled, of the other in full."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    picture = dataset.decode.open_picture(Encoded(buffer.getvalue(), ""), 3, 10**9)
    assert picture.pixels(0.1).shape[0] == (8 if decoder == SCALED else 64)


def train(config: Config) -> float:
    runtime = build_runtime(config, place(config))
    train_source, held_out = open_source(config, "train"), open_source(config, "validation")
    assert train_source is not None and held_out is not None
    loader = TrainLoader(train_source, config, runtime.share)
    num_steps, step = number_of_steps(config, loader.steps_per_epoch), 0
    for epoch in range(config.epochs):
        for batch in loader.epoch(epoch):
            runtime.train_step(batch, learning_rate_of(config, step, num_steps), step)
            step += 1
    validation = EvalLoader(
        held_out, config, batch_size=runtime.eval_batch_size, share_index=0, num_shares=1, images=True, targets=True
    )
    return evaluate(runtime, validation, config.loss).top1


if __name__ == "__main__":
    sys.exit(main())
