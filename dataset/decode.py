"""Image files and channel counts: from what a user has to uint8 pixels [C, h, w]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

LUMA = (299, 587, 114)  # ITU-R 601, per mille of red, green, blue; as Pillow turns RGB to grey


def decode_file(path: str, num_channels: int) -> Tensor:
    """Pixels of an image file, upright, uint8 [num_channels, h, w]: 1 grey, 3 RGB, alpha left out, 16 bits cut to 8.

    Raises UserError with the file and the reason where it cannot be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            pixels = np.array(_eight_bits(upright).convert("L" if num_channels == 1 else "RGB"))
    except Exception as error:  # Pillow's decoders raise many kinds, each with the reason in its text
        raise UserError(
            f"cannot read image {path}: {_reason(error)}\n       Replace the file, or take it out of the data set."
        ) from error
    # Channels stay last in memory, where resizing is fastest.
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def to_channels(image: Tensor, num_channels: int) -> Tensor:
    """A grey image as RGB or the reverse, uint8 [C, h, w] to [num_channels, h, w]."""
    if image.shape[0] == num_channels:
        return image
    if num_channels == 3:
        return image.expand(3, -1, -1)
    weights = torch.tensor(LUMA, dtype=torch.int32).view(3, 1, 1)
    return (
        ((image.to(torch.int32) * weights).sum(0, keepdim=True) + 500).div_(1000, rounding_mode="floor").to(torch.uint8)
    )


def _eight_bits(image: Image) -> Image:
    """Modes that `convert` would clip or warn of, in one that it converts faithfully."""
    from PIL import Image as PillowImage

    if image.mode == "F":
        raise ValueError("its pixels are fractions, whose range is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, also where Pillow opens them as 32
        return PillowImage.fromarray((np.asarray(image).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "cannot identify image file" in str(error):
        return "not an image, or of a kind that Pillow does not know"
    return str(error) or type(error).__name__
