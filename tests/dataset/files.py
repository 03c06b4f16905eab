"""Small image files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Tuple

import numpy as np
from PIL import Image


def write_images(root: Path, counts: Dict[str, int], size: Tuple[int, int] = (12, 10)) -> None:
    """`counts[folder]` random RGB images, 0.png, 1.png, ..., in every folder below `root`; `size` is (width, height)."""
    generator = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
