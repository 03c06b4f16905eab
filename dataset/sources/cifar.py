"""CIFAR-10 and CIFAR-100 from their published python archives, extracted or not; downloaded where they are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from dataset.sources.archives import find_archive
from dataset.sources.download import download_cifar
from dataset.sources.safe_pickle import load_pickle
from errors import UserError, user_path

if TYPE_CHECKING:
    from config import Config

CHANNELS, SIDE = 3, 32


class Layout(NamedTuple):
    """Names inside one of the two archives."""

    folder: str
    archive: str
    files: Dict[str, Tuple[str, ...]]  # by split
    labels: bytes
    names_file: str
    names: bytes
    num_classes: int


LAYOUTS = {
    "cifar10": Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        files={"train": tuple(f"data_batch_{part}" for part in range(1, 6)), "validation": ("test_batch",)},
        labels=b"labels",
        names_file="batches.meta",
        names=b"label_names",
        num_classes=10,
    ),
    "cifar100": Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        files={"train": ("train",), "validation": ("test",)},
        labels=b"fine_labels",
        names_file="meta",
        names=b"fine_label_names",
        num_classes=100,
    ),
}


class Cifar:
    """Images [3, 32, 32], held in memory as bytes."""

    is_cheap = False  # most are enlarged and augmented
    is_ready = False
    notes: Tuple[str, ...] = ()

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, class_names: Tuple[str, ...], num_classes: int) -> None:
        self._images = torch.from_numpy(pixels.reshape(-1, CHANNELS, SIDE, SIDE))
        self.labels, self.class_names, self.num_classes = labels, class_names, num_classes

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Tensor:
        return self._images[index]


def open_cifar(config: Config, split: str) -> Cifar:
    """The set that `dataset` names, from its folder or archive in `dataset_path`.

    Raises UserError where it is neither there nor to be had, or not what it should be.
    """
    layout = LAYOUTS[config.dataset]
    if not config.dataset_path:
        raise UserError(
            f"dataset = {config.dataset} needs dataset_path, the folder with {layout.folder}/ or {layout.archive}.\n"
            f"       Where it holds neither, {layout.archive} is downloaded into it: --dataset-path data/{config.dataset}"
        )
    root = user_path(config.dataset_path)
    archive = find_archive(root, layout.folder, layout.archive)
    if archive is None:
        download_cifar(config.dataset, root, layout.folder, layout.archive)
        archive = find_archive(root, layout.folder, layout.archive)
        assert archive is not None, "the download has put it there"
    contents = archive.read((*layout.files[split], layout.names_file))
    parts = [_read_part(contents[name], archive.where(name), layout) for name in layout.files[split]]
    names = _read_names(contents[layout.names_file], archive.where(layout.names_file), layout)
    pixels, labels = (np.concatenate(columns) for columns in zip(*parts))
    return Cifar(pixels, labels, names, layout.num_classes)


def _read_part(content: bytes, where: str, layout: Layout) -> Tuple[np.ndarray, np.ndarray]:
    """Pixels [n, 3072] uint8 and labels [n] int64 of one file."""
    fields = load_pickle(content, where)
    try:
        pixels = np.asarray(fields[b"data"])
        labels = np.asarray(fields[layout.labels], dtype=np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{where} holds no {b'data'!r} and {layout.labels!r}, as CIFAR's files do.") from None
    is_right = pixels.dtype == np.uint8 and pixels.shape == (len(labels), CHANNELS * SIDE * SIDE)
    if not is_right or labels.ndim != 1 or np.any((labels < 0) | (labels >= layout.num_classes)):
        raise UserError(
            f"{where} should hold uint8 [{labels.size}, {CHANNELS * SIDE * SIDE}] and labels below {layout.num_classes}, "
            f"but holds {pixels.dtype} {list(pixels.shape)} and labels {_range(labels)}.\n       Fetch the archive again."
        )
    return pixels, labels


def _range(labels: np.ndarray) -> str:
    return f"from {labels.min()} to {labels.max()}" if labels.size else "of length 0"


def _read_names(content: bytes, where: str, layout: Layout) -> Tuple[str, ...]:
    fields = load_pickle(content, where)
    names = fields.get(layout.names, ()) if isinstance(fields, dict) else ()
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
