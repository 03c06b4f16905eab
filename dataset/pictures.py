"""Pictures of samples, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import numpy as np

from dataset.order import Order
from dataset.samples import Samples

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source


def picture_of(source: Source, config: Config, index: int) -> Optional[np.ndarray]:
    """A sample as the model sees it in evaluation, uint8 [H, W, 3]; None where it cannot be read."""
    images, bad = Samples(source, config, augmented=False).read(Order(None, np.array([index])))
    if bad:
        return None
    pixels = images[0].permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
