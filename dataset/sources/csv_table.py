"""Images that a CSV file names, with one column of labels, or with several columns of 0 and 1."""

from __future__ import annotations

import os
import re
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from dataset.base import Encoded, read_file
from dataset.sources.index import Index, temporary_index
from dataset.sources.places import listing
from dataset.sources.table_file import Table, shown
from errors import UserError, nearest, user_path

if TYPE_CHECKING:
    from config import Config

FILES = {
    "train": ("train.csv", "train.tsv"),
    "validation": ("validation.csv", "val.csv", "validation.tsv", "val.tsv"),
}
# Usual names of columns, in small letters; of images also without what stands between the words ("Image Index").
IMAGE_NAMES = {"file", "filename", "filepath", "image", "imagefile", "imagefilename", "imageindex", "imagename"}
IMAGE_NAMES |= {"imagepath", "images", "img", "imgfile", "imgname", "imgpath", "path"}
LABEL_NAMES = ("label", "class", "target", "category")
BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
CLASS_NUMBER = re.compile(r"([0-9]+)(\.0*)?")  # pandas writes 3 as 3.0 where other rows are empty
MOST_CLASSES = 2**24  # num_labels is less: numbers from here on are names


class Columns(NamedTuple):
    """Names of the columns to read."""

    image: str
    labels: Tuple[str, ...]
    are_guessed: bool  # the labels are all columns that are left


class Classes(NamedTuple):
    """How the values of a label column are numbered: names as sorted, or whole numbers as they are."""

    names: Tuple[str, ...]
    num_classes: int


class CsvImages:
    """Image files in the order of the rows that name them."""

    is_cheap = False
    is_ready = False
    notes: Tuple[str, ...] = ()

    def __init__(self, root: Path, index: Index, labels: np.ndarray, num_classes: int, names: Sequence[str]) -> None:
        """`index` holds paths relative to `root`, or absolute ones."""
        self._root, self._index = root, index
        self.labels, self.num_classes, self.class_names = labels, num_classes, tuple(names)

    def __len__(self) -> int:
        return len(self._index)

    def path(self, index: int) -> str:
        return os.path.join(self._root, self._index.name(index))

    def item(self, index: int) -> Encoded:
        return read_file(self.path(index))


def open_csv(config: Config, split: str) -> Optional[CsvImages]:
    """The rows of a split; None where there is no validation file.

    Both splits have the columns and the class numbers of the training file. Raises UserError where a file or column is
    missing, or where a row is not as it should be; an image that is missing shows when it is read.
    """
    train, path = _find(config, "train"), _find(config, split)
    if path is None:
        if split == "validation":
            return None
        raise UserError(_no_train_file(config))
    table = Table(path)
    known = table if train is None or train == path else Table(train)
    columns = _find_columns(known, config)
    root = _image_root(config, path)
    if len(columns.labels) > 1:
        bits = _BitReader(table, columns.labels, columns.are_guessed and known is table)
        index = temporary_index(_paths(table, columns.image, bits), {}, {})
        return CsvImages(root, index, bits.labels(), len(columns.labels), columns.labels)
    values = _ValueReader(table, columns.labels[0])
    index = temporary_index(_paths(table, columns.image, values), {}, {})
    classes = values.classes() if known is table else _classes_of(known, columns.labels[0])
    return CsvImages(root, index, values.labels(classes, known.path), classes.num_classes, classes.names)


class _BitReader:
    """Several columns of 0 and 1, taken row by row."""

    def __init__(self, table: Table, columns: Sequence[str], are_guessed: bool) -> None:
        self._table, self._are_guessed = table, are_guessed
        self._positions = [table.position(name) for name in columns]
        self._bits = bytearray()

    def add(self, number: int, row: List[str]) -> None:
        try:
            self._bits.extend([BITS[row[position].strip()] for position in self._positions])
        except KeyError:
            raise self._bad_value(number, row) from None

    def labels(self) -> np.ndarray:
        """uint8 [rows, columns]."""
        return np.frombuffer(self._bits, dtype=np.uint8).reshape(-1, len(self._positions))

    def _bad_value(self, number: int, row: List[str]) -> UserError:
        position = next(position for position in self._positions if row[position].strip() not in BITS)
        found = f"has {shown(row[position])} in column {shown(self._table.columns[position])}"
        if self._are_guessed:
            return _no_label_column(
                self._table, f"none has a usual name, and they are not all 0 and 1: row {number} {found}"
            )
        return self._table.bad_row(
            number, f"{found}, where 0 or 1 is needed", "Correct it, or name other label_columns."
        )


class _ValueReader:
    """One column of labels, taken row by row: the distinct values, and which of them each row has."""

    def __init__(self, table: Table, column: str) -> None:
        self._table, self._position = table, table.position(column)
        self._codes: array[int] = array("i")  # by row
        self._code_of: Dict[str, int] = {}
        self._first_rows: array[int] = array("q")  # by code

    def add(self, number: int, row: List[str]) -> None:
        code = self._code_of.setdefault(row[self._position].strip(), len(self._first_rows))
        if code == len(self._first_rows):
            self._first_rows.append(number)
        self._codes.append(code)

    def classes(self) -> Classes:
        """Raises UserError where a row has no label."""
        self._check_labelled()
        numbers = [_class_number(value) for value in self._code_of]
        if None in numbers:
            names = tuple(sorted(self._code_of))
            return Classes(names, len(names))
        return Classes((), 1 + max(number for number in numbers if number is not None))

    def labels(self, classes: Classes, train: Path) -> np.ndarray:
        """int32 [rows]. Raises UserError where a row has a label that is not among `classes`, those of the file `train`."""
        self._check_labelled()
        label_of = {name: label for label, name in enumerate(classes.names)}
        labels = np.empty(len(self._code_of), dtype=np.int32)
        for value, code in self._code_of.items():
            label = label_of.get(value) if classes.names else _class_number(value)
            if label is None or label >= classes.num_classes:
                known = "" if classes.names else f", whose classes are 0 to {classes.num_classes - 1}"
                problem = f"has the label {shown(value)}, which {train.name} does not have{known}"
                raise self._bad_value(value, problem, f"Both need the same labels.{nearest(value, classes.names)}")
            labels[code] = label
        return labels[np.frombuffer(self._codes, dtype=np.int32)]

    def _check_labelled(self) -> None:
        if "" in self._code_of:
            raise self._bad_value("", "has no label", "Give it one, or take the row away.")

    def _bad_value(self, value: str, problem: str, remedy: str) -> UserError:
        return self._table.bad_row(self._first_rows[self._code_of[value]], problem, remedy)


def _class_number(value: str) -> Optional[int]:
    match = CLASS_NUMBER.fullmatch(value)
    number = int(match.group(1)) if match else MOST_CLASSES
    return number if number < MOST_CLASSES else None


def _classes_of(table: Table, column: str) -> Classes:
    values = _ValueReader(table, column)
    for number, row in table.rows():
        values.add(number, row)
    return values.classes()


def _paths(table: Table, column: str, labels: Union[_BitReader, _ValueReader]) -> Iterator[str]:
    """The path of each row's image; its labels are taken along, so that the file is read once."""
    position = table.position(column)
    for number, row in table.rows():
        path = row[position].strip()
        if not path or "\0" in path:
            remedy = "Give the path of an image, or take the row away."
            raise table.bad_row(number, f"has {shown(path)} in column {shown(column)}, which names no image", remedy)
        labels.add(number, row)
        yield path


def _find_columns(table: Table, config: Config) -> Columns:
    """The columns that the config names; those it does not name, by their usual names."""
    labels = tuple(config.label_columns or ())
    for name in labels:
        table.position(name)
    image = config.image_column or _image_column(table, labels)
    table.position(image)
    if image in labels or len(set(labels)) < len(labels):
        raise UserError(
            f"label_columns = {list(labels)} names a column twice, or the column of the images, {shown(image)}.\n"
            "       Give each column of labels once."
        )
    if labels:
        return Columns(image, labels, False)
    others = tuple(name for name in table.columns if name and name != image)
    found = [name for name in others if name.lower() in LABEL_NAMES]
    if len(found) == 1:
        return Columns(image, tuple(found), False)
    if found:
        raise _no_label_column(table, f"it could be {' or '.join(found)}")
    if len(others) < 2:
        raise _no_label_column(table, f"none is named {', '.join(LABEL_NAMES)}, nor are there several of 0 and 1")
    return Columns(image, others, True)


def _image_column(table: Table, labels: Sequence[str]) -> str:
    found = [name for name in table.columns if _plain(name) in IMAGE_NAMES and name not in labels]
    if len(found) == 1:
        return found[0]
    problem = (
        f"several columns that could hold the images' paths: {', '.join(found)}"
        if found
        else "no column with a usual name for the images' paths, such as image, path or filename"
    )
    raise UserError(
        f"{table.path} has {problem}.\n       Name the one that does: --image-column NAME. "
        f"Its columns, by its first line: {table.listed()}."
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower())


def _no_label_column(table: Table, problem: str) -> UserError:
    return UserError(
        f"{table.path} does not show which column is the label: {problem}.\n"
        "       Name it, --label-columns NAME, or name several of 0 and 1, --label-columns NAME NAME ...\n"
        f"       Its columns: {table.listed()}."
    )


def _find(config: Config, split: str) -> Optional[Path]:
    """The file of a split, or None where there is none."""
    if not config.dataset_path:
        raise UserError(
            f"dataset = {config.dataset} needs dataset_path, a CSV file, or the folder with train.csv and validation.csv in "
            "it: --dataset-path FILE"
        )
    root = user_path(config.dataset_path)
    if root.is_file():
        return root if split == "train" else None
    if not root.is_dir():
        raise UserError(
            f"dataset_path = {config.dataset_path} is neither a file nor a folder ({root.absolute()}).\n"
            "       Give a CSV file, or the folder that holds train.csv and validation.csv (or val.csv)."
        )
    return next((root / name for name in FILES[split] if (root / name).is_file()), None)


def _no_train_file(config: Config) -> str:
    root = user_path(config.dataset_path or "")
    tables = (entry.name for entry in os.scandir(root) if entry.name.lower().endswith((".csv", ".tsv")))
    there = listing(tables, "it holds no CSV file")
    return (
        f"dataset_path = {root} has no train.csv; {there}.\n"
        "       Expected: train.csv, and validation.csv or val.csv (or .tsv alike); or give a file: --dataset-path FILE."
    )


def _image_root(config: Config, table: Path) -> Path:
    if not config.image_folder:
        return table.parent.absolute()
    root = user_path(config.image_folder)
    if not root.is_dir():
        raise UserError(
            f"image_folder = {config.image_folder} is not a folder ({root.absolute()}).\n"
            "       Give the folder that the paths in the CSV file start from, or leave it out where that is the file's own."
        )
    return root.absolute()
