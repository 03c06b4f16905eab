"""Images in class folders: <dataset_path>/train/<class>/... and <dataset_path>/validation/ or val/ alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from torch import Tensor

from dataset.decode import decode_file
from errors import UserError, nearest, user_path

if TYPE_CHECKING:
    from config import Config

FOLDERS = {"train": ("train",), "validation": ("validation", "val")}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


class ImageFolder:
    """Image files, class by class in order of names, files in order of paths within a class.

    File names live in one buffer of bytes with an array of offsets: see `Source` for why.
    """

    is_cheap = False
    is_ready = False

    def __init__(self, root: Path, class_names: Sequence[str], num_channels: int) -> None:
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self._root, self._num_channels = root, num_channels
        names: List[bytes] = []
        counts = np.zeros(len(class_names), dtype=np.int64)
        for label, class_name in enumerate(class_names):
            files = sorted(_image_files(root / class_name))
            names += [os.fsencode(f"{class_name}/{file}") for file in files]
            counts[label] = len(files)
        self.counts = counts
        self.labels = np.repeat(np.arange(len(class_names), dtype=np.int64), counts)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        begin = self._ends[index - 1] if index else 0
        return str(self._root / os.fsdecode(self._names[begin : self._ends[index]].tobytes()))

    def image(self, index: int) -> Tensor:
        return decode_file(self.path(index), self._num_channels)


def open_folder(config: Config, split: str) -> Optional[ImageFolder]:
    """The folder of a split; None where there is no validation folder.

    Both splits number the classes as `train/` has them. Raises UserError where folders or images are missing, or where
    `validation/` has a class that `train/` lacks.
    """
    if not config.dataset_path:
        raise UserError(
            f"dataset = {config.dataset} needs dataset_path, the folder with train/ and validation/ in it: "
            "--dataset-path FOLDER"
        )
    root = user_path(config.dataset_path)
    if not root.is_dir():
        raise UserError(
            f"dataset_path = {config.dataset_path} is not a folder ({root.absolute()}).\n"
            "       Give the folder that holds train/ and validation/ (or val/)."
        )
    train, folder = _find(root, "train"), _find(root, split)
    if folder is None:
        if split == "validation":
            return None
        raise UserError(_no_train_folder(root))
    own_classes = _class_names(folder)
    classes = own_classes if train is None or train == folder else _class_names(train)
    _check_known(own_classes, classes, folder)
    source = ImageFolder(folder, classes, config.num_channels)
    _check_filled(source, folder, split)
    return source


def _find(root: Path, split: str) -> Optional[Path]:
    return next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)


def _class_names(folder: Path) -> List[str]:
    # Hidden ones are other programs' own, such as .ipynb_checkpoints.
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(
            f"{folder} holds no class folders.\n       Put the images of each class into a folder of its own there."
        )
    return names


def _image_files(folder: Path) -> Iterator[str]:
    """Paths of image files anywhere below `folder`, relative to it."""
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder above, or a second one to the same
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(path, folder)
        for file in files:
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield file if below == "." else f"{below}/{file}"


def _check_known(found: Sequence[str], known: Sequence[str], folder: Path) -> None:
    unknown = [name for name in found if name not in set(known)]
    if unknown:
        raise UserError(
            f"{folder}/{unknown[0]} is a class that train/ does not have.{nearest(unknown[0], known)}\n"
            "       Both need the same names of class folders."
        )


def _check_filled(source: ImageFolder, folder: Path, split: str) -> None:
    empty = [name for name, count in zip(source.class_names, source.counts) if not count]
    if len(source) == 0 or (empty and split == "train"):
        where = folder / empty[0] if split == "train" else folder
        raise UserError(
            f"{where} holds no images ({', '.join(SUFFIXES)}).\n       Put some there, or take the folder away."
        )


def _no_train_folder(root: Path) -> str:
    found: Tuple[str, ...] = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    there = f"it holds {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}" if found else "it holds no folders"
    return (
        f"dataset_path = {root} has no train/ folder; {there}.\n"
        "       Expected: train/<class name>/image files, and validation/ or val/ alike. If these are the class folders, move\n"
        "       them into train/, and hold a share out with --validation-split 0.2."
    )
