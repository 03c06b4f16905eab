"""NIH ChestX-ray14 (arXiv 1705.02315): chest X-rays with any of 14 findings, from the folder of its download."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Set, Tuple

import numpy as np

from dataset.base import Encoded, read_file
from dataset.sources.index import Index, temporary_index
from dataset.sources.places import data_folder
from dataset.sources.table_file import Table, shown
from errors import UserError, nearest
from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"train": "train_val_list.txt", "validation": "test_list.txt"}
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
NO_FINDING = "No Finding"
LEAKS = (
    "validation images are a random share: a patient may be on both sides, which flatters the AUC; put "
    f"{LISTS['train']} and {LISTS['validation']} beside the table for the official split by patients"
)
USUAL_SHARE = 0.05  # held out where neither the lists nor the config name the validation images


class ChestXray:
    """Image files in the order of the table, those that are there; `num_missing` more of the split are not."""

    is_cheap = False
    is_ready = False

    def __init__(self, root: Path, index: Index, labels: np.ndarray, names: Tuple[str, ...], num_missing: int) -> None:
        self._root, self._index, self.num_missing = root, index, num_missing
        missing = (
            f"{root} lacks {num_missing:,} of the {num_missing + len(index):,} images of a split, which go without"
        )
        self.notes: Tuple[str, ...] = (missing,) if num_missing else ()
        self.labels, self.class_names, self.num_classes = labels, names, len(names)

    def __len__(self) -> int:
        return len(self._index)

    def path(self, index: int) -> str:
        return f"{self._root}/{self._index.name(index)}"

    def item(self, index: int) -> Encoded:
        return read_file(self.path(index))


def open_chest_xray(config: Config, split: str) -> ChestXray:
    """The images of the published lists, test images for validation; of a random share where the lists are not there.

    Raises UserError where files are missing or not as published, or where none of the split's images is there.
    """
    root = _root(config)
    names, labels = _read_table(Table(_find_table(root)), config.no_finding)
    rows = _rows_of(root, names, config, split)
    folder_of = _scan(root)
    there = np.array([row for row in rows.tolist() if names[row] in folder_of], dtype=np.int64)
    if not len(there):
        raise UserError(_no_images(root, [names[row] for row in rows.tolist()], split))
    index = temporary_index((f"{folder_of[names[row]]}/{names[row]}" for row in there.tolist()), {}, {})
    class_names = (*FINDINGS, NO_FINDING) if config.no_finding else FINDINGS
    source = ChestXray(root, index, labels[there], class_names, len(rows) - len(there))
    if not any((root / name).is_file() for name in LISTS.values()):
        source.notes += (LEAKS,)
    return source


def _root(config: Config) -> Path:
    return data_folder(config, f"{TABLES[0]} and images/", f"{TABLES[0]} and the images").absolute()


def _find_table(root: Path) -> Path:
    for name in TABLES:
        if (root / name).is_file():
            return root / name
    raise UserError(
        f"dataset_path = {root} holds neither {' nor '.join(TABLES)}.\n"
        "       Put the table of NIH ChestX-ray14's findings there, as it is downloaded."
    )


def _read_table(table: Table, no_finding: bool) -> Tuple[List[str], np.ndarray]:
    """Names of all images, and their labels, uint8 [N, 14], or [N, 15] where No Finding is the last label."""
    image, findings = table.position("Image Index"), table.position("Finding Labels")
    column_of = {name: column for column, name in enumerate((*FINDINGS, NO_FINDING))}
    width = len(column_of)
    names: List[str] = []
    bits = bytearray()
    for number, row in table.rows():
        names.append(row[image].strip())
        if not names[-1]:
            raise table.bad_row(number, "names no image", "Give the name of its file, or take the row away.")
        bits.extend(bytes(width))
        for finding in row[findings].split("|"):
            column = column_of.get(finding.strip())
            if column is None:
                known = nearest(finding, column_of) or f" Known: {', '.join(column_of)}."
                raise table.bad_row(number, f"has the unknown finding {shown(finding)}", f"Correct it.{known}")
            bits[len(bits) - width + column] = 1
    return names, np.frombuffer(bits, dtype=np.uint8).reshape(-1, width)[:, : width if no_finding else len(FINDINGS)]


def _rows_of(root: Path, names: List[str], config: Config, split: str) -> np.ndarray:
    """Rows of the table that belong to a split, ascending, whether their images are there or not."""
    lists = {key: root / name for key, name in LISTS.items()}
    found = [path.name for path in lists.values() if path.is_file()]
    if not found:
        return _random_rows(len(names), config, split)
    if len(found) == 1:
        absent = next(name for name in LISTS.values() if name not in found)
        raise UserError(
            f"{root} holds {found[0]}, but not {absent}.\n"
            "       Put it there too, or take the other away: a random share is held out then."
        )
    listed = {key: _read_list(path, set(names)) for key, path in lists.items()}
    both = listed["train"] & listed["validation"]
    if both:
        raise UserError(
            f"{shown(min(both))} is in both lists of {root}, {' and '.join(found)}.\n       Take it out of one of them."
        )
    return np.array([row for row, name in enumerate(names) if name in listed[split]], dtype=np.int64)


def _random_rows(count: int, config: Config, split: str) -> np.ndarray:
    # Of all rows, so that an image keeps its split when more of the archives are extracted.
    num_held_out = min(count, math.ceil((config.validation_split or USUAL_SHARE) * count - 1e-9))
    generator = np.random.default_rng(derive_seed(config.random_seed, "held out"))
    is_held_out = np.zeros(count, dtype=bool)
    is_held_out[generator.permutation(count)[:num_held_out]] = True
    return np.flatnonzero(is_held_out if split == "validation" else ~is_held_out)


def _read_list(path: Path, known: Set[str]) -> Set[str]:
    """The names in a list of images, one a line. Raises UserError where the table does not have one."""
    listed: Set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}.\n       It needs the name of an image a line.") from error
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if name and name not in known:
            raise UserError(
                f"line {number} of {path} names {shown(name)}, which the table of findings does not have.\n"
                "       Take the table and the lists from the same download."
            )
        if name:
            listed.add(name)
    return listed


def _scan(root: Path) -> Dict[str, str]:
    """The folder, relative to `root`, of each file in the folders of images."""
    folders = [root / "images", *sorted(root.glob("images_*/images"))]
    found: Dict[str, str] = {}
    for folder in folders:
        if folder.is_dir():
            relative = folder.relative_to(root).as_posix()
            with os.scandir(folder) as entries:
                for entry in entries:
                    found.setdefault(entry.name, relative)
    return found


def _no_images(root: Path, names: List[str], split: str) -> str:
    if not names:
        return (
            f"{root} has no image for {split}: its lists or its validation_split leave none.\n"
            f"       Check {LISTS[split]}, or change validation_split."
        )
    return (
        f"{root} holds none of the {len(names):,} images for {split}: {', '.join(names[:3])}"
        f"{', ...' if len(names) > 3 else ''}\n"
        "       Extract the archives images_001.tar.gz to images_012.tar.gz there: into images/, or images_001/images/ etc."
    )
