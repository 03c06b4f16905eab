"""mixup's weight (arXiv 1710.09412): one a weight update, the same on every replica."""

from __future__ import annotations

import numpy as np

from seeding import derive_seed


def draw_lambda(seed: int, update: int, alpha: float) -> float:
    """The weight of an image against its partner in weight update `update`: Beta(alpha, alpha), from 0 to 1."""
    return float(np.random.default_rng(derive_seed(seed, "mixup", update)).beta(alpha, alpha))
