"""How many weight updates a config makes, as far as that is known without its data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from config import Config

TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1_797, "imagenet1k": 1_281_167}


def updates_of(config: Config) -> Optional[int]:
    """Weight updates of the whole run; None for a config that validates, or whose data set's size is not known here."""
    if not config.trains:
        return None
    if config.epochs == 0:
        return config.training_steps * config.device_iterations
    images = TRAINING_IMAGES.get(config.dataset)
    if images is not None and config.dataset != "imagenet1k":  # which has a validation set: `dataset/registry.py`
        images -= math.ceil(config.validation_split * images - 1e-9)
    if config.dataset == "generated" or config.synthetic_data:
        images = config.iterations * config.samples_per_step
    if images is None:
        return None
    return images // config.samples_per_step * config.epochs * config.device_iterations
