"""The 1,797 handwritten digits that ship with scikit-learn: grey, 8 x 8 pixels, ten classes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from errors import UserError

if TYPE_CHECKING:
    from config import Config

NUM_SAMPLES, SIDE, BRIGHTEST = 1797, 8, 16


class Digits:
    """Pixels stretched from 0..16 to 0..255, uint8 [1, 8, 8]."""

    num_classes = 10
    class_names = tuple("0123456789")
    is_cheap = True
    is_ready = False
    notes: Tuple[str, ...] = ()

    def __init__(self) -> None:
        table = _read_table()
        self.labels = table[:, -1].astype(np.int64)
        pixels = np.rint(table[:, :-1] * (255 / BRIGHTEST)).astype(np.uint8)
        self._images = torch.from_numpy(pixels).view(-1, 1, SIDE, SIDE)

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Tensor:
        return self._images[index]


def open_digits(config: Config, split: str) -> Optional[Digits]:
    """All digits for training; they come without a validation set."""
    return Digits() if split == "train" else None


def _read_table() -> np.ndarray:
    # `sklearn.datasets.load_digits` reads this file too, after 1.7 s of imports in every process of the pipeline; reading it
    # here takes 20 ms. `find_spec` finds the package without importing it.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("dataset = digits needs scikit-learn, which ships them.\n       pip install scikit-learn")
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    assert table.shape == (NUM_SAMPLES, SIDE * SIDE + 1), "another file than scikit-learn's digits"
    return table
