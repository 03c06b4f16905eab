"""What the model sees of a picture: as this project's validation cuts it, or as a published model's own preparation does."""

from __future__ import annotations

import math
from functools import partial
from typing import Callable, Tuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.decode import Picture
from dataset.transforms.crop import LONGEST, centre_crop
from weights.card import ModelCard

View = Callable[[Picture], Tensor]  # uint8 [C, H, W]; raises BadImageError


def view_of(card: ModelCard) -> View:
    """How pictures are prepared for a model.

    Bilinear with a centre crop is what models of this project are validated with, by the same code. Others are prepared as
    Hugging Face (`squash`) and timm do, which resize with Pillow from all pixels.
    """
    height, width = card.arch.image_size
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[card.interpolation]
    if card.squash:
        return partial(_squashed, size=(height, width), share=card.eval_crop, method=method)
    if card.interpolation == "bilinear" and height == width:
        return partial(centre_crop, short_side=math.floor(height / card.eval_crop), size=height)
    return partial(_middle, size=(height, width), share=card.eval_crop, method=method)


def _squashed(picture: Picture, size: Tuple[int, int], share: float, method: Image.Resampling) -> Tensor:
    """All of the picture, whatever its shape, resized so that the model's size is `share` of it; then its middle."""
    down, across = (math.floor(side / share) for side in size)
    image = _resized(picture.pixels(least=1.0), (down, across), method)
    top, left = (down - size[0]) // 2, (across - size[1]) // 2
    return image[:, top : top + size[0], left : left + size[1]]


def _middle(picture: Picture, size: Tuple[int, int], share: float, method: Image.Resampling) -> Tensor:
    """The picture so large that the model sees `share` of one side and as much or less of the other, then its middle."""
    pixels = _without_far_ends(picture.pixels(least=1.0))
    height, width = pixels.shape[:2]
    down, across = (math.floor(side / share) for side in size)
    if height * across <= width * down:
        across = int(down * width / height)
    else:
        down = int(across * height / width)
    image = _resized(pixels, (down, across), method)
    top, left = round((down - size[0]) / 2), round((across - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


def _without_far_ends(pixels: np.ndarray) -> np.ndarray:
    """The middle of a strip [h, w, C], which would be resized to a length that fills the memory."""
    height, width = pixels.shape[:2]
    down, across = min(height, LONGEST * width), min(width, LONGEST * height)
    top, left = (height - down) // 2, (width - across) // 2
    return pixels[top : top + down, left : left + across]


def _resized(pixels: np.ndarray, size: Tuple[int, int], method: Image.Resampling) -> Tensor:
    """uint8 [h, w, C] to [C, *size]; Pillow widens its filter when it makes smaller, which is what antialiasing means."""
    pixels = np.ascontiguousarray(pixels)
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = np.array(image.resize((size[1], size[0]), method))
    return torch.from_numpy(resized.reshape(*size, -1)).permute(2, 0, 1)
