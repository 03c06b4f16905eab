"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, shipped inside the package."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Tuple

import numpy as np
import torch
from torch import Tensor

from errors import UserError

SIDE = 8
BRIGHTEST = 16


class Digits:
    """All digits; brightness 0 to 16 becomes 0 to 255."""

    num_classes = 10
    class_names: Tuple[str, ...] = tuple("0123456789")
    in_memory = True

    def __init__(self) -> None:
        table = _read_table()
        pixels = np.rint(table[:, :-1] * (255 / BRIGHTEST)).astype(np.uint8)
        self._images = torch.from_numpy(pixels.reshape(-1, 1, SIDE, SIDE))
        self.labels = table[:, -1].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        return self._images[index]


def _read_table() -> np.ndarray:
    """[1797, 65]: 64 brightnesses and the label. Read from the packaged file: importing sklearn.datasets takes 1.7 s."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("dataset = digits comes with scikit-learn, which is not installed: pip install scikit-learn.")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    bunch = import_module("sklearn.datasets").load_digits()
    return np.column_stack([bunch.data, bunch.target])
