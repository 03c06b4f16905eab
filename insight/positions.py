"""What position embeddings have learned: how alike those of two patches are (arXiv 2010.11929, figure 7)."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from models.architecture import Architecture

MOST_ROWS = 14  # and columns that are compared; of a larger grid as many, evenly spaced


def position_similarity(arch: Architecture, embeddings: Tensor) -> np.ndarray:
    """[1, N, D] to the cosine similarity of each patch's embedding to each other's, float32 [rows, columns, rows, columns].

    What belongs to no patch stands before those that do, and is left out.
    """
    rows, columns = arch.grid
    patches = embeddings[0, -rows * columns :].float().unflatten(0, (rows, columns))
    patches = patches[_spread(rows)][:, _spread(columns)]
    directions = F.normalize(patches, dim=-1)
    return np.einsum("abd,efd->abef", directions.numpy(), directions.numpy(), optimize=True)


def _spread(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, MOST_ROWS)).round().astype(np.int64)
