"""Handwritten digits as chest films: a small set that can be learned, in the files of NIH ChestX-ray14's download."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
from PIL import Image

from dataset.sources.chest_xray import FINDINGS, NO_FINDING
from dataset.sources.digits import Digits

SIDE, CELL = 16, 8
CELLS = (SIDE // CELL) ** 2
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
HEADER += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"


def write_digit_films(root: Path, num_train: int, num_test: int, lists: bool = True) -> None:
    """Grey PNG files of 0 to 3 digits each; digit d stands for the d-th finding, so that the last four have no film."""
    digits, generator = Digits(), np.random.default_rng(0)
    pixels = np.stack([digits.item(index)[0].numpy() for index in range(len(digits))])
    held_out = np.arange(len(digits)) % 5 == 0  # the digits of test films are in no training film
    folder = root / "images_001" / "images"
    folder.mkdir(parents=True)
    names, rows = [], []
    for number in range(num_train + num_test):
        chosen = _in_different_places(digits.labels, np.flatnonzero(held_out == (number >= num_train)), generator)
        names.append(f"{number:08d}_000.png")
        Image.fromarray(_film(pixels[chosen], digits.labels[chosen], generator)).save(folder / names[-1])
        found = sorted(FINDINGS[digits.labels[index]] for index in chosen)
        rows.append(f"{names[-1]},{'|'.join(found) or NO_FINDING},0,{number},57,M,PA,2682,2749,0.143,0.143")
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    if lists:
        (root / "train_val_list.txt").write_text("\n".join(names[:num_train]) + "\n")
        (root / "test_list.txt").write_text("\n".join(names[num_train:]) + "\n")


def _in_different_places(labels: np.ndarray, members: np.ndarray, generator: np.random.Generator) -> List[int]:
    drawn = generator.choice(members, generator.integers(0, 4)).tolist()
    return list({int(labels[index]) % CELLS: index for index in drawn}.values())


def _film(digits: np.ndarray, labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """uint8 [SIDE, SIDE]: noise, and each digit in the quarter where its like are found."""
    film = generator.integers(0, 40, (SIDE, SIDE))
    for digit, label in zip(digits, labels.tolist()):
        top, left = (CELL * place for place in divmod(label % CELLS, SIDE // CELL))
        film[top : top + CELL, left : left + CELL] += digit * 3 // 4
    return np.clip(film, 0, 255).astype(np.uint8)
