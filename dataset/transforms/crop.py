"""Which part of a picture is seen, and at what size: the random crop of training, the centre crop of evaluation."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import NamedTuple, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.decode import SCALES, Picture

RATIOS = (3 / 4, 4 / 3)  # of width to height, as torchvision's RandomResizedCrop
ATTEMPTS = 10
# A scaled JPEG has this many times the target's resolution or more. With less, it comes out sharper, and noisier, than one that
# is resized from all pixels: by 2 to 4 of 255 in the mean at once the resolution, by less than 1 at twice.
MARGIN = 2.0
LONGEST = 32  # times the short side: what is beyond is cut off before the middle is resized


class Box(NamedTuple):
    """In pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(size: Tuple[int, int], scale: Tuple[float, float], draw: random.Random) -> Box:
    """A box with a share of the area from `scale` and a ratio of sides from `RATIOS`, by the rule of Inception
    (arXiv 1409.4842) in torchvision's form: the largest centred box of such a ratio after ten misses. `size` (height, width).
    """
    height, width = size
    for _ in range(ATTEMPTS):
        area = height * width * draw.uniform(*scale)
        ratio = math.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return Box(draw.randint(0, height - down), draw.randint(0, width - across), down, across)
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    across, down = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    return Box((height - down) // 2, (width - across) // 2, down, across)


def resized_crop(picture: Picture, box: Box, size: int, method: str = "bilinear") -> Tensor:
    """The box as uint8 [C, size, size]. It is decoded at no less than that resolution, where it has it. Raises BadImageError."""
    return _resized(picture, box, (size, size), method)


def centre_crop(picture: Picture, short_side: int, size: int, method: str = "bilinear") -> Tensor:
    """The picture at a short side of `short_side` pixels, then its middle: uint8 [C, size, size], placed as torchvision
    places it. Raises BadImageError.
    """
    box = _middle(*picture.size)
    shortest = min(box.height, box.width)
    # Fractions of a pixel are left out, as torchvision leaves them out.
    sides = int(short_side * box.height / shortest), int(short_side * box.width / shortest)
    image = _resized(picture, box, sides, method)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def _middle(height: int, width: int) -> Box:
    """All of a picture, or the middle of a strip, which would be resized to a length that fills the memory."""
    down, across = min(height, LONGEST * width), min(width, LONGEST * height)
    return Box((height - down) // 2, (width - across) // 2, down, across)


def _resized(picture: Picture, box: Box, size: Tuple[int, int], method: str) -> Tensor:
    """A box of a picture as uint8 [C, *size]."""
    pixels = picture.pixels(least=MARGIN * max(size[0] / box.height, size[1] / box.width))
    top, left, height, width = box
    if pixels.shape[:2] == picture.size:
        return resize(pixels[top : top + height, left : left + width], size, method)
    scaled = (scale for scale in SCALES if pixels.shape[:2] == tuple(-(-side // scale) for side in picture.size))
    scale = next(scaled, picture.size[0] / pixels.shape[0])
    edges = left / scale, top / scale, (left + width) / scale, (top + height) / scale
    return _resize_between_pixels(pixels, edges, size, method)


def _resize_between_pixels(
    pixels: np.ndarray, edges: Tuple[float, float, float, float], size: Tuple[int, int], method: str
) -> Tensor:
    """uint8 [h, w, C] to [C, *size], within left, top, right and bottom edges that may lie between pixels; otherwise as `resize`,
    but slower.
    """
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = image.resize((size[1], size[0]), Image.Resampling[method.upper()], box=edges)
    return torch.from_numpy(np.array(resized).reshape(*size, -1)).permute(2, 0, 1)


def resize(pixels: np.ndarray, size: Tuple[int, int], method: str = "bilinear") -> Tensor:
    """uint8 [h, w, C] to [C, *size]; bilinear or bicubic, antialiased. Channels stay last in memory, where this is fastest."""
    # A view, whose strides tell torch that channels are last, even with one image: `unsqueeze` would hide it.
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).view(1, *pixels.shape).permute(0, 3, 1, 2)
    if batch.shape[-2:] == size:
        return batch[0]
    if _resizes_bytes(method):
        return F.interpolate(batch, size, mode=method, antialias=True, align_corners=False)[0]
    if method == "bicubic":  # as torch rounds bytes, and Pillow: between the two directions
        return _resize_between_pixels(
            np.ascontiguousarray(pixels), (0, 0, pixels.shape[1], pixels.shape[0]), size, method
        )
    resized = F.interpolate(batch.float(), size, mode=method, antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)[0]


@lru_cache(maxsize=None)
def _resizes_bytes(method: str) -> bool:
    """Older versions of torch resize floats only; 2.0.1 takes bytes, but not with the bicubic kernel that it has for floats."""
    pixels = torch.arange(64, dtype=torch.uint8).mul_(37).view(1, 1, 8, 8)
    try:
        found = F.interpolate(pixels, (5, 5), mode=method, antialias=True, align_corners=False)
    except RuntimeError:
        return False
    wanted = F.interpolate(pixels.float(), (5, 5), mode=method, antialias=True, align_corners=False).clamp_(0, 255)
    return bool((found - wanted).abs().max() <= 3)
