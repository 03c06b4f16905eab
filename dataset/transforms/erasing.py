"""Random Erasing (arXiv 1708.04896)."""

from __future__ import annotations

import math
import random

from torch import Tensor

AREAS, RATIOS, ATTEMPTS = (0.02, 0.33), (0.3, 3.3), 10  # torchvision's ranges


def random_erasing(image: Tensor, draw: random.Random, probability: float, fill: int) -> None:
    """Fills a random rectangle of an image [C, h, w], in place, with this probability."""
    if draw.random() >= probability:
        return
    height, width = image.shape[-2:]
    for _ in range(ATTEMPTS):
        area = height * width * draw.uniform(*AREAS)
        ratio = math.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < down < height and 0 < across < width:
            top, left = draw.randint(0, height - down), draw.randint(0, width - across)
            image[:, top : top + down, left : left + across] = fill
            return
