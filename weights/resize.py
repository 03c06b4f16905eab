"""Position embeddings for another grid of patches."""

from __future__ import annotations

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(
    pos_embed: Tensor, old_grid: Tuple[int, int], new_grid: Tuple[int, int], num_prefix_tokens: int, method: str
) -> Tensor:
    """[1, prefix + rows * columns, D] of one grid -> the same of another; those of the prefix tokens stay as they are.

    `method`: "bicubic", antialiased as timm does, or "linear" (bilinear without antialiasing, as the ViT paper's code).
    """
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    grid = patches.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)  # [1, D, rows, columns]
    if method == "bicubic":
        grid = F.interpolate(grid, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    else:
        grid = F.interpolate(grid, size=new_grid, mode="bilinear", align_corners=False)
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2).to(prefix.dtype)], dim=1)
