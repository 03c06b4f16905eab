"""Folders of photographs to measure with: cuts of the two that ship with scikit-learn, in class folders of JPEG files."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Tuple

from PIL import Image, ImageEnhance

PHOTOS = ("china.jpg", "flower.jpg")
QUALITY = 93  # about as many bytes a pixel as ImageNet's files have


def write_photos(root: Path, count: int, size: Tuple[int, int] = (500, 375)) -> float:
    """`count` different photographs of `size` (width, height) in two classes below `root`. Returns their mean size in bytes."""
    draw = random.Random(0)
    originals = [Image.open(_folder() / name).convert("RGB") for name in PHOTOS]
    for number in range(count):
        label = number % len(PHOTOS)
        folder = root / PHOTOS[label][:-4]
        folder.mkdir(parents=True, exist_ok=True)
        _variant(originals[label], draw, size).save(folder / f"{number:05d}.jpg", quality=QUALITY)
    return sum(path.stat().st_size for path in root.rglob("*.jpg")) / count


def _folder() -> Path:
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None, "requirements.txt installs scikit-learn"
    return Path(package.origin).parent / "datasets" / "images"


def _variant(photo: Image.Image, draw: random.Random, size: Tuple[int, int]) -> Image.Image:
    share = draw.uniform(0.7, 1.0)
    width, height = round(photo.width * share), round(photo.height * share)
    left, top = draw.randint(0, photo.width - width), draw.randint(0, photo.height - height)
    cut = photo.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    return ImageEnhance.Brightness(cut).enhance(draw.uniform(0.8, 1.2))
