"""Handwritten digits as chest films: a small set that can be learned, in the files of NIH ChestX-ray14's download."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
from PIL import Image

from dataset.sources.chest_xray import FINDINGS, NO_FINDING
from dataset.sources.digits import Digits

SIDE, CELL = 16, 8
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
HEADER += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"


def write_digit_films(root: Path, num_train: int, num_test: int, lists: bool = True) -> None:
    """Grey PNG files of 0 to 3 digits each; digit d stands for the d-th finding, so that the last four have no film."""
    digits, generator = Digits(), np.random.default_rng(0)
    pixels = np.stack([digits.item(index)[0].numpy() for index in range(len(digits))])
    split = len(digits) * 4 // 5  # handwriting in the test films is not that of the training films
    folder = root / "images_001" / "images"
    folder.mkdir(parents=True)
    names, rows = [], []
    for number in range(num_train + num_test):
        members = range(split) if number < num_train else range(split, len(digits))
        chosen = _different_digits(digits.labels, members, generator)
        names.append(f"{number:08d}_000.png")
        Image.fromarray(_film(pixels[chosen], generator)).save(folder / names[-1])
        found = sorted(FINDINGS[digits.labels[index]] for index in chosen)
        rows.append(f"{names[-1]},{'|'.join(found) or NO_FINDING},0,{number},57,M,PA,2682,2749,0.143,0.143")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    if lists:
        (root / "train_val_list.txt").write_text("\n".join(names[:num_train]) + "\n")
        (root / "test_list.txt").write_text("\n".join(names[num_train:]) + "\n")


def _different_digits(labels: np.ndarray, members: range, generator: np.random.Generator) -> List[int]:
    drawn = generator.integers(members.start, members.stop, generator.integers(0, 4)).tolist()
    return list({int(labels[index]): index for index in drawn}.values())


def _film(digits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """uint8 [SIDE, SIDE]: noise, and each digit in a cell of its own."""
    film = generator.integers(0, 40, (SIDE, SIDE))
    cells = generator.permutation((SIDE // CELL) ** 2)[: len(digits)]
    for cell, digit in zip(cells.tolist(), digits):
        top, left = (CELL * place for place in divmod(cell, SIDE // CELL))
        film[top : top + CELL, left : left + CELL] += digit * 3 // 4
    return np.clip(film, 0, 255).astype(np.uint8)
