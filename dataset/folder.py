"""Class folders of image files: `<dataset_path>/train/<class>/…` and `<dataset_path>/validation/<class>/…` (or `val/`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import numpy as np
from torch import Tensor

from dataset.decode import decode_file
from errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
FOLDERS = {"train": ("train",), "validation": ("validation", "val")}


class ImageFolder:
    """Every image below `root`, sorted by path; the first folder below `root` is the class, classes in order of name."""

    in_memory = False

    def __init__(self, root: Path, class_names: Optional[Tuple[str, ...]] = None) -> None:
        self._root = root
        found = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
        self.class_names = class_names if class_names is not None else found
        unknown = sorted(set(found) - set(self.class_names))
        if unknown:
            raise UserError(
                f"{root} has the class folder {unknown[0]}, which the training set has not. Rename or remove it."
            )
        paths, labels = [], []
        for label, name in enumerate(self.class_names):
            files = sorted(_image_paths(root / name, name))
            paths += files
            labels += [label] * len(files)
        if not paths:
            raise UserError(f"{root} has no images in class folders. Expected {root}/<class name>/<image>.jpg.")
        # One buffer instead of a Python object a path: workers share it, and reading it copies no memory pages.
        encoded = [path.encode() for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded])
        self._paths = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.labels = np.array(labels, dtype=np.int64)
        self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        start = self._ends[index - 1] if index else 0
        return self._root / self._paths[start : self._ends[index]].tobytes().decode()

    def image(self, index: int) -> Tensor:
        return decode_file(self.path(index))


def open_folder(dataset_path: Optional[str], split: str) -> Optional[ImageFolder]:
    """The split's class folders; None where the validation folder is missing. Raises UserError where nothing is there."""
    if not dataset_path:
        raise UserError(
            "dataset_path is not set. Name the folder that holds train/ and validation/ with --dataset-path."
        )
    root = Path(dataset_path)
    train = _existing(root, "train")
    if train is None:
        what = "has no folder train/" if root.is_dir() else "is not a folder"
        raise UserError(
            f"dataset_path = {dataset_path} {what}.\n       Expected {root}/train/<class name>/<image>.jpg, and "
            "validation/ or val/ beside train/. Name another with --dataset-path."
        )
    if split == "train":
        return ImageFolder(train)
    validation = _existing(root, split)
    return None if validation is None else ImageFolder(validation, ImageFolder(train).class_names)


def _existing(root: Path, split: str) -> Optional[Path]:
    return next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)


def _image_paths(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of image files below a class folder, nested ones too, starting with `prefix`."""
    entries: List[os.DirEntry[str]] = list(os.scandir(folder)) if folder.is_dir() else []
    for entry in entries:
        if entry.is_dir():
            yield from _image_paths(Path(entry.path), f"{prefix}/{entry.name}")
        elif entry.name.lower().endswith(SUFFIXES):
            yield f"{prefix}/{entry.name}"
