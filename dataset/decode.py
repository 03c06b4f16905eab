"""Image files to uint8 tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from errors import UserError


def decode_file(path: Path) -> Tensor:
    """Reads any image that Pillow knows as RGB, uint8 [3, height, width]. Raises UserError naming a file that it cannot."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))  # a copy: torch wants memory that it may write
    except Exception as error:  # decoders fail in many ways; all mean that this file is bad
        reason = "not an image that Pillow knows" if type(error).__name__ == "UnidentifiedImageError" else str(error)
        raise UserError(
            f"image {path} cannot be read: {reason}.\n       Repair it or take it out of the data set."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
