"""What a whole run costs, in hours of devices: money is what they cost an hour, which is the reader's to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from planning.layout import Layout
from planning.length import updates_of
from planning.throughput import Prediction

if TYPE_CHECKING:
    from config import Config


def device_hours(config: Config, layout: Layout, prediction: Prediction) -> Optional[float]:
    """Of all devices that compute, over all weight updates. None where the speed or the number of updates is not known."""
    updates = updates_of(config)
    if updates is None or prediction.images_per_second is None:
        return None
    return updates * config.global_batch_size / prediction.images_per_second * layout.num_used / 3600
