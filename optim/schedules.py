"""Learning-rate schedules: pure functions of the host step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math


def learning_rate_at(
    step: int, *, base: float, schedule: str, warmup_steps: int, num_steps: int, least: float = 0.0
) -> float:
    """Learning rate of host step `step` (from 0) of `num_steps`; all updates of one host step share it.

    Rises linearly over `warmup_steps` and reaches `base` in the last of them; no step has rate 0. Then `constant`, `linear`
    (to `least`) or `cosine` (half a wave to `least`, arXiv 1608.03983); the decay would reach it one step after the last.
    """
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return least + (base - least) * max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return least + (base - least) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return base
