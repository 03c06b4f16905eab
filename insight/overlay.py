"""Draws attention over pictures as the model sees them."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

SMALLEST_SIDE, LARGEST_SIDE = 192, 256  # pixels of a drawn picture: small ones are enlarged, large ones reduced
# From least to most attention; it also grows lighter, for eyes that do not tell the hues apart.
COLOURS = ((24, 16, 60), (98, 28, 108), (188, 54, 84), (240, 132, 44), (252, 232, 128))
OPACITY = 0.62  # of the colours over the picture


def shown_view(view: Tensor) -> Image.Image:
    """uint8 [C, H, W] as an RGB picture: small ones with each pixel as a square, large ones scaled down."""
    pixels = view.numpy().transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    shortest, longest = min(image.size), max(image.size)
    if longest > LARGEST_SIDE:
        width, height = (max(1, round(side * LARGEST_SIDE / longest)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    times = -(-SMALLEST_SIDE // shortest)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def overlay(view: Tensor, attention: Tensor) -> Image.Image:
    """The view in grey under colours that go from its least to its most attended patch, blended between patches."""
    picture = shown_view(view)
    shares = attention.float().numpy()
    span = float(shares.max() - shares.min())
    heat = (shares - shares.min()) / span if span > 0 else np.zeros_like(shares)
    smooth = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
    grey = np.asarray(picture.convert("L"), dtype=np.float32)[:, :, None]
    blended = OPACITY * coloured(np.asarray(smooth)) + (1 - OPACITY) * grey
    return Image.fromarray(blended.round().clip(0, 255).astype(np.uint8))


def coloured(heat: np.ndarray) -> np.ndarray:
    """[h, w] of 0 to 1 to colours float [h, w, 3]."""
    stops = np.linspace(0.0, 1.0, len(COLOURS))
    return np.stack([np.interp(heat, stops, channel) for channel in zip(*COLOURS)], axis=-1)
