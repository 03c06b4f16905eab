"""What a data source offers to the loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Tuple

from torch import Tensor

from errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from config import Config


class Source(Protocol):
    """Decoded images with one label each, by index. Reading one has no side effect, and is possible in any process.

    Whatever a source keeps for each image lives in numpy arrays: loader processes share their pages, while the reference
    counts of Python objects would copy them one by one.
    """

    labels: np.ndarray  # int64 [N]
    num_classes: int
    class_names: Tuple[str, ...]  # by label; empty where the data has no names
    is_cheap: bool  # an image costs less to make than to hand over from a loader process
    is_ready: bool  # images have the config's channels and size, and are not augmented

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """Decoded pixels, uint8 [C, h, w] with C 1 or 3, not augmented. Raises UserError for an unreadable file."""
        ...


def check_labels(source: Source, config: Config) -> None:
    """Raises UserError where the data has more classes than the model's head."""
    if source.num_classes > config.num_labels:
        raise UserError(
            f"dataset = {config.dataset} has {source.num_classes} classes, but num_labels = {config.num_labels}.\n"
            f"       Set num_labels = {source.num_classes}."
        )
