"""Images of a Hugging Face set: saved with `datasets`, as parquet or Arrow files, or by its name on the hub.

`datasets` keeps the rows in Arrow files that all processes map; parquet files are unpacked into its cache, once.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

import machine
from dataset.base import BadImageError, Encoded, read_file
from dataset.sources.hub_columns import Labels, image_column, is_unlabelled, label_columns, read_labels
from errors import UserError, user_path

if TYPE_CHECKING:
    from config import Config

VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "test")  # the first that is there
NUMBERED = re.compile(r"(?:^|[-_.])\d+(?:-of-(\d+))?(?:-[0-9a-f]{8,})?$")  # train-00000-of-00002-0123456789abcdef

Opener = Callable[[], Any]  # of one split's datasets.Dataset


class HubDataset:
    """Rows of a `datasets.Dataset`, none of whose columns but the images is touched by reading one."""

    is_cheap = False
    is_ready = False
    notes: Tuple[str, ...] = ()

    def __init__(self, images: Any, name: str, root: Path, labels: Labels) -> None:
        """`images` has the one column of images; relative paths in it are below `root`."""
        self.labels, self.num_classes, self.class_names = labels
        self._images, self._name, self._root = images.with_format("arrow"), name, root

    def __len__(self) -> int:
        return len(self.labels)

    def item(self, index: int) -> Encoded:
        where = f"{self._name}[{index}]"
        image = self._images[int(index)].column(0)[0].as_py()
        content, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        if isinstance(content, str):
            content, path = None, content
        if content is not None:
            return Encoded(content, where)
        if path is None:
            raise BadImageError(where, "the row has no image")
        return read_file(os.path.join(self._root, path))


def open_hub(config: Config, split: str) -> Optional[HubDataset]:
    """The rows of a split; None where the set has none for validation.

    Raises UserError where the set is not found or cannot be read, and where its columns or labels are not understood.
    """
    _quiet_library()
    if not config.dataset_path:
        raise UserError(
            f"dataset = {config.dataset} needs dataset_path, a set's name on the hub or its files: --dataset-path NAME"
        )
    splits = _find_splits(config.dataset_path, config.hub_subset)
    chosen = _choose_split(list(splits), split)
    if chosen is None and split == "validation":
        return None
    if chosen is None:
        raise UserError(
            f"dataset_path = {config.dataset_path} has no split named train, but {', '.join(splits)}.\n"
            "       Rename the one to train on, or save it by itself: a set's only split is the training set."
        )
    rows = splits[chosen]()
    name = f"{config.dataset_path}[{chosen}]"
    if len(rows) == 0:
        raise UserError(_no_rows(name))
    image = image_column(rows, config.image_column, name)
    columns = label_columns(rows, config.label_columns, image, name)
    if split == "validation" and is_unlabelled(rows, columns):
        return None  # a test set whose labels are kept back
    train = _choose_split(list(splits), "train")
    labels = read_labels(rows, columns, name, splits[train] if train and train != chosen else lambda: rows)
    path = user_path(config.dataset_path)
    return HubDataset(rows.select_columns([image]), name, path if path.is_dir() else path.parent, labels)


def _quiet_library() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the library is imported
    try:
        import datasets
        import huggingface_hub.utils
    except ImportError as error:
        raise UserError("dataset = hub needs the package `datasets`: pip install datasets") from error
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs errors that it raises as well
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()  # it tells of every try


# Splits: where they are, and how each is opened.


def _find_splits(dataset_path: str, subset: Optional[str]) -> Dict[str, Opener]:
    path = user_path(dataset_path)
    if path.is_dir():
        return _splits_in_folder(path, subset)
    if path.is_file():
        return {"train": _file_opener(path)}
    if dataset_path.startswith(("/", ".", "~")) or dataset_path.count("/") > 1 or path.suffix in (".parquet", ".arrow"):
        raise UserError(
            f"dataset_path = {dataset_path} is neither a file nor a folder ({path.absolute()}).\n"
            "       Give a folder saved with `datasets`, parquet files, or the name of a set on the hub."
        )
    return _splits_on_hub(dataset_path, subset)


def _file_opener(path: Path) -> Opener:
    import datasets

    if path.suffix == ".parquet":
        return partial(_open_parquet, [path])
    if path.suffix == ".arrow":
        # A file of Arrow's other format, with a table of contents at its end, cannot be read by `datasets`.
        advice = "It must be whole, and in Arrow's stream format, which `datasets` writes."
        return partial(_read, partial(datasets.Dataset.from_file, str(path)), path, advice)
    raise UserError(
        f"dataset_path = {path} is neither a .parquet nor an .arrow file.\n"
        "       Give one, a folder of parquet files, or a folder saved with `datasets`."
    )


def _splits_in_folder(folder: Path, subset: Optional[str]) -> Dict[str, Opener]:
    import datasets

    damaged = "Save or copy it again; a split without rows cannot be loaded."
    if (folder / "dataset_dict.json").is_file():
        about = _read(lambda: json.loads((folder / "dataset_dict.json").read_text()), folder, damaged)
        saved = {name: folder / name for name in about.get("splits", ())}
    else:
        saved = {"train": folder} if (folder / "state.json").is_file() else {}
    if saved:
        load = datasets.load_from_disk
        return {name: partial(_read, partial(load, str(path)), path, damaged) for name, path in saved.items()}
    for place in [folder / subset] if subset else [folder, folder / "data"]:
        files = sorted(place.glob("*.parquet"))
        if files:
            return {name: partial(_open_parquet, part) for name, part in _by_split(files).items()}
    raise UserError(
        f"dataset_path = {folder} has no data set{f' in {subset}/ (hub_subset)' if subset else ''}.\n"
        "       Expected: what `save_to_disk` writes, or files like train-00000-of-00001.parquet, there or in data/."
    )


def _by_split(files: Sequence[Path]) -> Dict[str, List[Path]]:
    """Files by the splits that their names tell; "train" where they tell none. Raises UserError where some of N are missing."""
    splits: Dict[str, List[Path]] = {}
    for file in files:
        numbered = NUMBERED.search(file.stem)
        name = file.stem[: numbered.start()] if numbered else file.stem
        known = {"train", *VALIDATION_SPLITS}.intersection(re.split(r"[-_.]", name))
        of_split = splits.setdefault(known.pop() if len(known) == 1 else name or "train", [])
        of_split.append(file)
    for name, of_split in splits.items():
        wanted = {
            int(found.group(1)) for found in map(NUMBERED.search, (f.stem for f in of_split)) if found and found[1]
        }
        if len(wanted) == 1 and len(of_split) < max(wanted):
            raise UserError(
                f"{of_split[0].parent} holds {len(of_split)} of the {max(wanted)} files of split {name}.\n"
                "       Download the others as well."
            )
    return splits


def _open_parquet(files: Sequence[Path]) -> Any:
    import datasets
    import pyarrow.parquet

    advice = "It must be a whole parquet file: copy it again."
    about = [_read(partial(pyarrow.parquet.read_metadata, file), file, advice) for file in files]
    if not sum(part.num_rows for part in about):
        raise UserError(_no_rows(str(files[0])))
    columns = [sorted(part.schema.to_arrow_schema().names) for part in about]
    for file, own in zip(files, columns):
        if own != columns[0]:
            raise UserError(
                f"{file} has the columns {', '.join(own)}, but {files[0].name} has {', '.join(columns[0])}.\n"
                "       All files of a split must have the same columns."
            )
    load = partial(datasets.Dataset.from_parquet, [glob.escape(str(file)) for file in files])
    try:
        return load()
    except Exception:
        for file in files:  # which one it is, the library does not tell
            _read(partial(_read_through, file), file, "It is damaged: copy it again.")
        return _read(load, files[0].parent, "All files of a split must have the same kinds of columns.")


def _read_through(file: Path) -> None:
    import pyarrow.parquet

    for _ in pyarrow.parquet.ParquetFile(file).iter_batches():
        pass


def _splits_on_hub(name: str, subset: Optional[str]) -> Dict[str, Opener]:
    import datasets

    if machine.local_rank() == 0:
        print(f"fetching {name} from the Hugging Face hub, or from its cache", file=sys.stderr, flush=True)
    try:
        found = datasets.load_dataset(name, subset)
    except Exception as error:  # of many kinds, from the network to the set's own files
        raise UserError(
            f"dataset_path = {name} is no file or folder here, and is not to be had from the hub"
            f"{f' with hub_subset = {subset}' if subset else ''}:\n       {_reason(error)}\n"
            "       Check the name, hub_subset and the network; a private set needs `hf auth login`."
        ) from error
    return {str(split): partial(found.__getitem__, split) for split in found}


def _no_rows(where: str) -> str:
    return f"{where} has no rows.\n       Put some there, or take the split away."


def _choose_split(names: Sequence[str], split: str) -> Optional[str]:
    if len(names) == 1:
        return names[0] if split == "train" else None
    wanted = ("train",) if split == "train" else VALIDATION_SPLITS
    return next((name for name in wanted if name in names), None)


def _read(load: Opener, path: Path, advice: str) -> Any:
    try:
        return load()
    except Exception as error:  # of many kinds: Arrow's, the system's, missing keys
        raise UserError(f"cannot read {path}: {_reason(error)}\n       {advice}") from error


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
