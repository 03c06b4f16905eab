"""What a data source offers to the loaders."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, Protocol, Tuple, Union

import numpy as np
from torch import Tensor

from errors import UserError

if TYPE_CHECKING:
    from config import Config


class Encoded(NamedTuple):
    """The bytes of an image file that is not decoded yet; `where` names it in messages."""

    content: bytes
    where: str


Item = Union[Tensor, Encoded]


class BadImageError(Exception):
    """One image that cannot be used. `where` names its file; `reason` is a few words."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)  # both: what loader processes hand over is made anew from them
        self.where, self.reason = where, reason


class Source(Protocol):
    """Images with their labels, by index. Reading one has no side effect, and is possible in any process.

    Whatever a source keeps for each image lives in numpy arrays or an `Index`: loader processes share their pages, while the
    reference counts of Python objects would copy them one by one.
    """

    labels: np.ndarray  # integers [N], or uint8 [N, num_classes] of 0 and 1 where an image may have several
    num_classes: int
    class_names: Tuple[str, ...]  # by label; empty where the data has no names
    is_cheap: bool  # an image costs less to make than to hand over from a loader process
    is_ready: bool  # images have the config's channels and size, and are not augmented
    notes: Tuple[str, ...]  # what a user should know of the data

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Pixels uint8 [C, h, w] with C 1 or 3, or a file that holds them; not augmented. Raises BadImageError."""
        ...


def read_file(path: str) -> Encoded:
    """An image file's bytes. Raises BadImageError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return Encoded(file.read(), path)
    except (OSError, ValueError) as error:  # a name with a null byte, from a table, is a ValueError
        raise BadImageError(path, getattr(error, "strerror", None) or str(error)) from error


def sample_name(source: Source, index: int) -> str:
    """The path of a sample's file where the source has one, else its number."""
    path = getattr(source, "path", None)
    return path(index) if path is not None else f"sample {index}"


def fingerprint(source: Source) -> str:
    """Tells data sets apart by how many images they have, with which labels and names of classes."""
    digest = hashlib.blake2b(repr(source.class_names).encode(errors="surrogatepass"), digest_size=8)
    digest.update(np.ascontiguousarray(source.labels).tobytes())
    return f"{len(source)} {digest.hexdigest()}"


def check_labels(source: Source, config: Config) -> None:
    """Raises UserError where the data's labels do not fit the model's head or the loss."""
    found, wanted = source.num_classes, config.num_labels
    several = source.labels.ndim == 2
    if found > wanted or (several and found != wanted):
        kind = "labels an image" if several else "classes"
        other = (
            ", or leave No Finding out: no_finding = false" if config.dataset == "chest_xray" and wanted == 14 else ""
        )
        raise UserError(
            f"dataset = {config.dataset} has {found} {kind}, but num_labels = {wanted}.\n"
            f"       Set num_labels = {found}{other}."
        )
    if several and config.loss != "SigmoidCELoss":
        raise UserError(
            f"dataset = {config.dataset} has images with several labels, which loss = {config.loss} cannot learn.\n"
            "       Set loss = SigmoidCELoss."
        )
