"""Random rotation, zoom, shear and shift of training images."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from config import Config

Coefficients = Tuple[float, float, float, float, float, float]


class RandomAffine:
    """Rotation, zoom, shear along x and shift about the centre of square images; bilinear.

    The ranges are those of torchvision's RandomAffine, but shifts are not rounded to whole pixels: small images need that.
    What comes into view is mid-grey in colour images, black in grey ones.
    """

    def __init__(self, config: Config) -> None:
        self._rotation, self._shear = math.radians(config.rotation), math.radians(config.shear)
        self._zoom, self._translate = config.zoom, config.translate
        self._fill = fill_value(config.num_channels)

    def __call__(self, batch: Tensor, draws: Sequence[random.Random]) -> Tensor:
        return warp(batch, [self._draw(draw) for draw in draws], self._fill)

    def _draw(self, draw: random.Random) -> Coefficients:
        angle = draw.uniform(-self._rotation, self._rotation)
        shear = draw.uniform(-self._shear, self._shear)
        scale = draw.uniform(1 - self._zoom, 1 + self._zoom)
        shift = draw.uniform(-self._translate, self._translate), draw.uniform(-self._translate, self._translate)
        return inverse_affine(angle, shear, scale, shift)


def inverse_affine(angle: float, shear: float, scale: float, shift: Tuple[float, float]) -> Coefficients:
    """(a, b, c, d, e, f): what is seen at (x, y) comes from (a x + b y + c, d x + e y + f), the image spanning [-1, 1].

    The forward map shears along x, turns clockwise by `angle`, both in radians, scales, and shifts by shares of the side.
    """
    cos, sin, tan = math.cos(angle) / scale, math.sin(angle) / scale, math.tan(shear)
    a, b, d, e = cos - tan * sin, sin + tan * cos, -sin, cos
    x, y = 2 * shift[0], 2 * shift[1]
    return a, b, -(a * x + b * y), d, e, -(d * x + e * y)


def warp(batch: Tensor, coefficients: Sequence[Coefficients], fill: int) -> Tensor:
    """uint8 [n, C, S, S], each image seen through an affine map of its own."""
    a, b, c, d, e, f = torch.tensor(coefficients).t().reshape(6, -1, 1, 1)
    across = (torch.arange(batch.shape[-1]) * 2 + 1) / batch.shape[-1] - 1  # pixel centres
    down = across.view(-1, 1)
    # Written out: a matrix product may round differently with other batch sizes or thread counts.
    grid = torch.stack((across * a + c + down * b, across * d + f + down * e), dim=-1)  # [n, S, S, 2]
    warped = F.grid_sample(batch.float().sub_(fill), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.add_(fill).round_().to(torch.uint8)


def fill_value(num_channels: int) -> int:
    """What comes into view from beyond an image: mid-grey, as AutoAugment's policy was searched with; black if it is grey."""
    return 128 if num_channels == 3 else 0
