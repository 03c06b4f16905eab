"""Images a second that the hosts' cores can read from JPEG files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from planning.layout import Layout

if TYPE_CHECKING:
    from config import Config

IMAGES_PER_CORE = 709  # measured: docs/data.md, files of 500 x 375 pixels; 88 at 2000 x 1500
NO_FILES = ("generated", "digits", "cifar10", "cifar100")  # decoded once, or never


def loading_rate(config: Config, layout: Layout) -> Optional[float]:
    """None where nothing is decoded, or cores are not known, or have the model to compute."""
    cores = layout.machine.cores
    if cores is None or config.synthetic_data or config.dataset in NO_FILES:
        return None
    return float(layout.hosts * cores * IMAGES_PER_CORE)
