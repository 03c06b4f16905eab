"""Images in class folders: <dataset_path>/train/<class>/... and <dataset_path>/validation/ or val/ alike."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from dataset.base import Encoded, read_file
from dataset.sources.image_files import SUFFIXES, is_image_name, walk
from dataset.sources.index import Index, cached_index, write_index
from dataset.sources.places import data_folder, listing
from dataset.sources.progress import LongWork
from errors import UserError, nearest

if TYPE_CHECKING:
    from config import Config

FOLDERS = {"train": ("train",), "validation": ("validation", "val")}
SCANS_AT_ONCE = 16  # listing a folder is waiting, on a network file system
COARSEST_CLOCK = 2_000_000_000  # ns by which a file system may round the time of a change (FAT: 2 s)


class ImageFolder:
    """Image files, class by class in order of names, files in order of paths within a class."""

    is_cheap = False
    is_ready = False
    notes: Tuple[str, ...] = ()

    def __init__(self, root: Path, index: Index, class_names: Sequence[str]) -> None:
        """`class_names` number the labels; they include those of `index`."""
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self._root, self._index = root, index
        own = index.about["classes"]
        self.labels = index["labels"]
        if own != list(class_names):
            positions = {name: label for label, name in enumerate(class_names)}
            self.labels = np.array([positions[name] for name in own], dtype=np.int32)[self.labels]

    def __len__(self) -> int:
        return len(self._index)

    def path(self, index: int) -> str:
        return f"{self._root}/{self._index.name(index)}"

    def item(self, index: int) -> Encoded:
        return read_file(self.path(index))


def open_folder(config: Config, split: str) -> Optional[ImageFolder]:
    """The folder of a split; None where there is no validation folder.

    Both splits number the classes as `train/` has them. Raises UserError where folders or images are missing, or where
    `validation/` has a class that `train/` lacks.
    """
    root = data_folder(config, "train/ and validation/", "train/ and validation/ (or val/)")
    train, folder = _find(root, "train"), _find(root, split)
    if folder is None:
        if split == "validation":
            return None
        raise UserError(_no_train_folder(root))
    own_classes = _class_names(folder)
    classes = own_classes if train is None or train == folder else _class_names(train)
    _check_known(own_classes, classes, folder)
    index = index_of(folder)
    _check_filled(index, folder, split)
    return ImageFolder(folder, index, classes)


def index_of(folder: Path) -> Index:
    """The image files below the class folders of `folder`, from the cache where no folder has changed since.

    What changes is seen by the times of the folders: whatever is added, renamed or removed changes the time of its folder.
    """
    return cached_index(
        f"folder {os.path.realpath(folder)}", partial(_is_current, folder), partial(_write_index_of, folder)
    )


def _is_current(folder: Path, index: Index) -> bool:
    try:
        return all(_state(os.stat(folder / path)) == state for path, state in index.about["folders"].items())
    except OSError:
        return False


def _write_index_of(folder: Path, target: Path) -> bool:
    """Returns whether the index may be kept: not if a folder has changed just now, for it may do so again without its time
    showing it; nor if a link leads nowhere, for what appears there changes no time here.
    """
    begun = time.time_ns()
    classes = _class_names(folder)
    own_state = _state(os.stat(folder))
    work = LongWork(f"indexing {folder}", "images")
    with ThreadPoolExecutor(SCANS_AT_ONCE) as pool:
        found = list(pool.map(partial(_scan, folder, work), classes))
    folders: Dict[str, List[int]] = {"": own_state}
    for scan in found:
        folders.update(scan.folders)
    counts = [len(scan.files) for scan in found]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    names = (file for scan in found for file in scan.files)
    write_index(target, names, {"labels": labels}, {"classes": classes, "folders": folders})
    leads_nowhere = _has_dead_link(folder, os.listdir(folder)) or any(scan.has_dead_link for scan in found)
    return not leads_nowhere and max(changed for changed, _ in folders.values()) < begun - COARSEST_CLOCK


def _state(status: os.stat_result) -> List[int]:
    """What changes with what is in a folder: its time, in ns; and which one it is, where links lead there."""
    return [status.st_mtime_ns, status.st_ino]


def _has_dead_link(folder: Any, names: Sequence[str]) -> bool:
    paths = [f"{folder}/{name}" for name in names if not name.lower().endswith(SUFFIXES)]
    return any(os.path.islink(path) and not os.path.exists(path) for path in paths)


@dataclass
class _Scan:
    """Paths relative to the root: the image files of one class, sorted, and the folders with their states."""

    files: List[str] = field(default_factory=list)
    folders: Dict[str, List[int]] = field(default_factory=dict)
    has_dead_link: bool = False


def _scan(root: Path, work: LongWork, class_name: str) -> _Scan:
    scan = _Scan()
    for path, status, files in walk(root / class_name):
        below = os.path.relpath(path, root)
        scan.folders[below] = _state(status)
        images = [file for file in files if is_image_name(file)]
        scan.files.extend(f"{below}/{file}" for file in images)
        scan.has_dead_link |= _has_dead_link(path, files)
        work.add(len(images))
    scan.files.sort()
    return scan


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


def _check_known(found: Sequence[str], known: Sequence[str], folder: Path) -> None:
    unknown = [name for name in found if name not in set(known)]
    if unknown:
        raise UserError(
            f"{folder}/{unknown[0]} is a class that train/ does not have.{nearest(unknown[0], known)}\n"
            "       Both need the same names of class folders."
        )


def _check_filled(index: Index, folder: Path, split: str) -> None:
    classes: List[Any] = index.about["classes"]
    counts = np.bincount(index["labels"], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts) if not count]
    if len(index) == 0 or (empty and split == "train"):
        where = folder / empty[0] if split == "train" else folder
        raise UserError(
            f"{where} holds no images ({', '.join(SUFFIXES)}).\n       Put some there, or take the folder away."
        )


def _no_train_folder(root: Path) -> str:
    there = listing((entry.name for entry in os.scandir(root) if entry.is_dir()), "it holds no folders")
    return (
        f"dataset_path = {root} has no train/ folder; {there}.\n"
        "       Expected: train/<class name>/image files, and validation/ or val/ alike. If these are the class folders, move\n"
        "       them into train/, and hold a share out with --validation-split 0.2."
    )
