"""scikit-learn's handwritten digits as CIFAR archives: something to learn in the published form.

    python -m tests.cifar_digits data            # writes cifar-10-python.tar.gz and cifar-100-python.tar.gz into data/

1,797 digits of 8 x 8 pixels are drawn at 32 x 32 on a dark ground with noise: 1,437 are training images, 360 (every fifth) test
images. CIFAR-10's are white, and the label is the digit; CIFAR-100's are in one of ten inks, and the fine label is
10 x digit + ink, the coarse one fine // 5.
"""

from __future__ import annotations

import colorsys
import sys
from pathlib import Path
from typing import Dict, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from tests.dataset.cifar_files import ARCHIVES, archive_of, python2_pickle

WHITE = [(1.0, 1.0, 1.0)]
INKS = [colorsys.hsv_to_rgb(number / 10, 0.8, 1.0) for number in range(10)]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def drawn_digits(palette: Sequence[Tuple[float, float, float]]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels uint8 [1797, 3072] in CIFAR's order (red, green and blue planes), digits [1797] and inks [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    generator = np.random.default_rng(0)
    inks = generator.integers(0, len(palette), len(data.target))
    small = torch.from_numpy(data.images).float()[:, None] / 16
    strokes = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False).numpy()  # [N, 1, 32, 32]
    colours = np.array(palette)[inks][:, :, None, None]  # [N, 3, 1, 1]
    ground = generator.uniform(0, 0.25, (len(inks), 1, 1, 1)) + generator.normal(0, 0.03, (len(inks), 3, 32, 32))
    pixels = strokes * colours + (1 - strokes) * ground
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8).reshape(len(inks), -1), data.target, inks


def cifar10_files() -> Dict[str, bytes]:
    """Name -> content of the ten-class archive's files."""
    pixels, digits, _ = drawn_digits(WHITE)
    is_test = np.arange(len(digits)) % 5 == 0
    parts = {f"data_batch_{n + 1}": rows for n, rows in enumerate(np.array_split(np.flatnonzero(~is_test), 5))}
    parts["test_batch"] = np.flatnonzero(is_test)
    files = {
        name: python2_pickle({b"batch_label": name.encode(), b"labels": digits[rows].tolist(), b"data": pixels[rows]})
        for name, rows in parts.items()
    }
    return {**files, "batches.meta": python2_pickle({b"label_names": [name.encode() for name in DIGITS]})}


def cifar100_files() -> Dict[str, bytes]:
    """Name -> content of the hundred-class archive's files."""
    pixels, digits, inks = drawn_digits(INKS)
    fine = 10 * digits + inks
    is_test = np.arange(len(digits)) % 5 == 0
    files = {
        name: python2_pickle(
            {b"fine_labels": fine[rows].tolist(), b"coarse_labels": (fine[rows] // 5).tolist(), b"data": pixels[rows]}
        )
        for name, rows in (("train", ~is_test), ("test", is_test))
    }
    names = [f"{digit} in ink {ink}".encode() for digit in DIGITS for ink in range(10)]
    return {**files, "meta": python2_pickle({b"fine_label_names": names})}


def write_archives(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, files in (("cifar10", cifar10_files), ("cifar100", cifar100_files)):
        archive_of(files(), kind, folder / ARCHIVES[kind])


if __name__ == "__main__":
    write_archives(Path(sys.argv[1]))
