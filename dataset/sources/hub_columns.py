"""Columns of a Hugging Face set: which are the images and the labels, and labels as numbers."""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from errors import UserError, nearest

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "category")
CLASSES_AT_MOST = 2**24  # as num_labels

Opener = Callable[[], Any]  # of one split's datasets.Dataset


class Labels(NamedTuple):
    """As a `Source` has them."""

    labels: np.ndarray
    num_classes: int
    class_names: Tuple[str, ...]


def image_column(rows: Any, wanted: Optional[str], name: str) -> str:
    import datasets
    from pyarrow import types

    schema = rows.data.schema
    if wanted is not None:
        _check_column(rows, "image_column", wanted, name)
        if not (_holds_bytes(schema.field(wanted).type) or types.is_string(schema.field(wanted).type)):
            raise UserError(
                f"image_column = {wanted} of {name} holds {schema.field(wanted).type}, not images.\n"
                f"       Its columns: {', '.join(rows.column_names)}."
            )
        return wanted
    kinds = (
        [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)],
        [column for column in rows.column_names if _holds_bytes(schema.field(column).type)],
        [
            column
            for column in rows.column_names
            if column in IMAGE_NAMES and types.is_string(schema.field(column).type)
        ],
    )
    candidates: List[str] = next(filter(None, kinds), [])
    return _only(candidates, IMAGE_NAMES, "image_column", rows, name)


def _holds_bytes(arrow_type: Any) -> bool:
    from pyarrow import types

    if types.is_struct(arrow_type):
        return {"bytes", "path"} <= {field.name for field in arrow_type}
    return bool(types.is_binary(arrow_type) or types.is_large_binary(arrow_type))


def label_columns(rows: Any, wanted: Optional[Sequence[str]], image: str, name: str) -> Sequence[str]:
    import datasets

    if wanted:
        for column in wanted:
            _check_column(rows, "label_columns", column, name)
        return wanted
    features = {column: feature for column, feature in rows.features.items() if column != image}
    kinds = (
        [column for column in features if column == LABEL_NAMES[0]],
        [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)],
        [column for column, feature in features.items() if isinstance(_element(feature), datasets.ClassLabel)],
        [column for column in features if column in LABEL_NAMES],
    )
    candidates: List[str] = next(filter(None, kinds), [])
    return [_only(candidates, LABEL_NAMES, "label_columns", rows, name)]


def _only(candidates: Sequence[str], names: Sequence[str], setting: str, rows: Any, where: str) -> str:
    """The one candidate, or the one of several that is named as such columns are."""
    named = [column for column in candidates if column in names]
    for group in (candidates, named, [column for column in named if column == names[0]]):
        if len(group) == 1:
            return group[0]
    what = setting.split("_")[0]
    found = f"several columns that may be the {what}: {', '.join(candidates)}" if candidates else f"no {what} column"
    raise UserError(
        f"{where} has {found}.\n       Set {setting} to one of its columns: {', '.join(rows.column_names)}."
    )


def _check_column(rows: Any, setting: str, column: str, name: str) -> None:
    if column not in rows.column_names:
        raise UserError(
            f"{setting} = {column}: {name} has no such column.{nearest(column, rows.column_names)}\n"
            f"       Its columns: {', '.join(rows.column_names)}."
        )


def _element(feature: Any) -> Any:
    """The feature of a list's elements, in each of the ways that versions of `datasets` have for it; None of no list."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)


def read_labels(rows: Any, columns: Sequence[str], name: str, open_train: Opener) -> Labels:
    """Labels of all rows, each column read as a whole. Classes that are texts are numbered as the training set has them."""
    import datasets
    from pyarrow import types

    if len(columns) > 1:
        return _indicators(rows, columns, name)
    column, where = columns[0], f"column {columns[0]} of {name}"
    feature, values = rows.features[column], _column(rows, column, where)
    if isinstance(feature, datasets.ClassLabel):
        return _numbers(values.to_numpy(), where, feature.names)
    if isinstance(_element(feature), datasets.ClassLabel):
        return _several(values, where, _element(feature).names)
    if types.is_string(values.type) or types.is_large_string(values.type):
        return _texts(values, where, _column(open_train(), column, f"column {column} of the training set"))
    if types.is_integer(values.type) or types.is_boolean(values.type):
        return _numbers(values.to_numpy().astype(np.int64), where, None)
    raise UserError(
        f"{where} holds {values.type}, which is no label.\n"
        "       A label is a whole number, a text, or a list of ClassLabel; or give several label_columns of 0 and 1."
    )


def is_unlabelled(rows: Any, columns: Sequence[str]) -> bool:
    """Whether all labels are -1 or null, as in the test sets of competitions."""
    from pyarrow import types

    values = rows.select_columns([columns[0]]).with_format("arrow")[:].column(0)
    if not (types.is_integer(values.type) or types.is_null(values.type)):
        return False
    return len(values) > 0 and set(values.unique().to_pylist()) <= {-1, None}


def _column(rows: Any, column: str, where: str) -> Any:
    """One column as a pyarrow.ChunkedArray without nulls."""
    values = rows.select_columns([column]).with_format("arrow")[:].column(0)
    if values.null_count:
        missing = values.is_null().to_numpy()
        raise UserError(
            f"{where} has no label in row {int(np.argmax(missing))} ({int(missing.sum())} such rows).\n"
            "       Fill the labels in, or filter these rows out."
        )
    return values


def _numbers(numbers: np.ndarray, where: str, names: Optional[Sequence[str]]) -> Labels:
    count = int(numbers.max()) + 1 if names is None else len(names)
    _check_range(numbers, np.arange(len(numbers)), where, CLASSES_AT_MOST if names is None else count)
    return Labels(numbers.astype(np.int64), count, tuple(names or ()))


def _several(lists: Any, where: str, names: Sequence[str]) -> Labels:
    """From lists of class numbers, uint8 [N, K]."""
    import pyarrow.compute

    rows = np.repeat(np.arange(len(lists)), pyarrow.compute.list_value_length(lists).to_numpy())
    numbers = pyarrow.compute.list_flatten(lists).fill_null(-1).to_numpy().astype(np.int64)
    _check_range(numbers, rows, where, len(names))
    labels = np.zeros((len(lists), len(names)), dtype=np.uint8)
    labels[rows, numbers] = 1
    return Labels(labels, len(names), tuple(names))


def _texts(texts: Any, where: str, train: Any) -> Labels:
    import pyarrow
    import pyarrow.compute

    names = sorted(train.unique().to_pylist())
    found = pyarrow.compute.index_in(texts, value_set=pyarrow.array(names, type=texts.type))
    if found.null_count:
        row = int(np.argmax(found.is_null().to_numpy()))
        raise UserError(
            f"{where} has {texts[row].as_py()!r} in row {row}, a class that the training set does not have."
            f"{nearest(texts[row].as_py(), names)}\n       Both need the same names of classes."
        )
    return Labels(found.to_numpy().astype(np.int64), len(names), tuple(names))


def _indicators(rows: Any, columns: Sequence[str], name: str) -> Labels:
    """From a column of 0 and 1 for each class, uint8 [N, K]."""
    labels = np.zeros((len(rows), len(columns)), dtype=np.uint8)
    for number, column in enumerate(columns):
        where = f"column {column} of {name}"
        values = _column(rows, column, where).to_numpy()
        wrong = ~np.isin(values, (0, 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(
                f"{where} has {values[row]} in row {row}.\n       Each of several label_columns must hold 0 or 1 everywhere."
            )
        labels[:, number] = values.astype(np.uint8)
    return Labels(labels, len(columns), tuple(columns))


def _check_range(numbers: np.ndarray, rows: np.ndarray, where: str, count: int) -> None:
    """Raises UserError where a class number is not below `count`; `rows` has the row of each."""
    wrong = (numbers < 0) | (numbers >= count)
    if not wrong.any():
        return
    first = int(np.argmax(wrong))
    if numbers[first] == -1:
        raise UserError(
            f"{where} is -1 in row {rows[first]}: these images have no labels ({int(wrong.sum())} of {len(numbers)}).\n"
            "       Use a set whose train and validation splits have labels, or save it without this split."
        )
    raise UserError(
        f"{where} is {numbers[first]} in row {rows[first]}, which is no class number from 0 to {count - 1}.\n"
        "       Number the classes from 0, or give their names as texts."
    )
