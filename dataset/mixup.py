"""Mixing weights of mixup (arXiv 1710.09412), drawn on the host."""

from __future__ import annotations

import numpy as np

from seeding import derive_seed


def draw_lambda(seed: int, update: int, alpha: float) -> float:
    """The weight in [0, 1] of weight update number `update`, from Beta(alpha, alpha), the same in every process."""
    generator = np.random.default_rng(derive_seed(seed, "mixup", update))
    return float(generator.beta(alpha, alpha))
