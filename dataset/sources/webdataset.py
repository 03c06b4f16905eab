"""Images in tar files of the WebDataset form: a sample's files share the name up to its first dot (a/7.jpg, a/7.cls).

Shards are read at random, not streamed: an index of where each image lies is made once.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

import machine
from dataset.base import BadImageError, Encoded
from dataset.sources.folder import COARSEST_CLOCK, FOLDERS
from dataset.sources.image_files import SUFFIXES
from dataset.sources.index import Index, cached_index, write_index
from dataset.sources.progress import LongWork
from dataset.sources.shards import compressed, find_shards
from errors import UserError

if TYPE_CHECKING:
    from config import Config

LABELS = ("cls", "json")  # the first that a sample has
JSON_KEYS = ("label", "cls", "class_id")
CLASS_FILES = ("classes.txt", "classnames.txt")
COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
BLOCK = 512  # bytes of a tar header; one of zeros ends the archive
LARGEST_LABEL = 2**31 - 1
MOST_OPEN = 64  # shards a process holds open; systems allow it 1,024 files, and its batches need many

Members = Dict[str, tarfile.TarInfo]  # of one sample: "image", "cls", "json"


class WebDataset:
    """Samples shard by shard, in the order in which a shard first names them."""

    is_cheap = False
    is_ready = False
    notes: Tuple[str, ...] = ()

    def __init__(self, shards: Sequence[str], index: Index, class_names: Sequence[str]) -> None:
        """`class_names` may be empty; classes are then as many as the largest label tells."""
        self.class_names = tuple(class_names)
        self.labels = index["labels"]
        self.num_classes = len(class_names) or int(self.labels.max()) + 1
        self._shards, self._index = tuple(shards), index
        # A descriptor that drops out of it is closed when the last thread that reads from it is done.
        self._opened = lru_cache(maxsize=MOST_OPEN)(_Descriptor)

    def __reduce__(self) -> Any:
        return WebDataset, (self._shards, self._index, self.class_names)

    def __len__(self) -> int:
        return len(self._index)

    def where(self, index: int) -> str:
        return f"{self._shards[self._index['shards'][index]]}:{self._index.name(index)}"

    def item(self, index: int) -> Encoded:
        where, size = self.where(index), int(self._index["sizes"][index])
        try:
            shard = self._opened(self._shards[self._index["shards"][index]])
            # Unlike seek and read, this leaves a descriptor that forked processes share as it was.
            content = os.pread(shard.number, size, int(self._index["offsets"][index]))
        except OSError as error:
            raise BadImageError(where, error.strerror or str(error)) from error
        if len(content) < size:
            raise BadImageError(where, f"the shard ends {size - len(content)} bytes before it does")
        return Encoded(content, where)


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def open_webdataset(config: Config, split: str) -> Optional[WebDataset]:
    """The shards of a split; None where none are for validation.

    Raises UserError where shards are missing or damaged, and where a sample lacks its image or its label.
    """
    if not config.dataset_path:
        raise UserError(
            f"dataset = {config.dataset} needs dataset_path, the folder of the .tar shards or a pattern of their names: "
            "--dataset-path FOLDER"
        )
    shards = find_shards(config.dataset_path, split)
    if not shards:
        return None
    index = index_of(shards)
    if len(index) == 0:
        raise UserError(
            f"{shards[0]}{f' and {len(shards) - 1} more' if len(shards) > 1 else ''}: no samples.\n"
            f"       A sample is an image ({', '.join(SUFFIXES)}) with a label (.cls or .json) of the same base name."
        )
    names_file = _names_file(shards)
    source = WebDataset(shards, index, _read_names(names_file) if names_file else ())
    _check_named(source, names_file)
    return source


def index_of(shards: Sequence[str]) -> Index:
    """Where the samples of the shards lie, from the cache where no shard has changed its size or time since."""
    key = "\n".join(["webdataset", *map(os.path.realpath, shards)])
    return cached_index(key, partial(_is_current, shards), partial(_write_index_of, shards))


def _is_current(shards: Sequence[str], index: Index) -> bool:
    try:
        return [_state(os.stat(shard)) for shard in shards] == index.about["shards"]
    except OSError:
        return False


def _write_index_of(shards: Sequence[str], target: Path) -> bool:
    """Returns whether the index may be kept: a shard that has changed just now may do so again without its time showing it."""
    begun = time.time_ns()
    scans = list(_scan_all(shards))
    shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), [len(scan.names) for scan in scans])
    offsets, sizes, labels = np.concatenate([scan.numbers for scan in scans], axis=1)
    arrays = {"shards": shard_of, "offsets": offsets, "sizes": sizes, "labels": labels.astype(np.int32)}
    names = (name for scan in scans for name in scan.names)
    write_index(target, names, arrays, {"shards": [scan.state for scan in scans]})
    return max(scan.state[1] for scan in scans) < begun - COARSEST_CLOCK


class _Scan(NamedTuple):
    """The samples of one shard."""

    names: List[str]  # of the images' members
    numbers: np.ndarray  # int64 [3, n]: offset in bytes, size in bytes, label
    state: List[int]


def _state(status: os.stat_result) -> List[int]:
    return [status.st_size, status.st_mtime_ns]


def _scan_all(shards: Sequence[str]) -> Iterator[_Scan]:
    """In processes: parsing headers is Python's own work, at 30 us each; two threads took twice as long as one."""
    work = LongWork(f"indexing {len(shards)} shards", "images")
    num_processes = min(machine.num_cores(), len(shards))
    if num_processes == 1:
        for shard in shards:
            yield _counted(_scan(shard), work)
        return
    # Left behind, they would keep the lock on the index.
    with ProcessPoolExecutor(num_processes, initializer=machine.end_with_parent) as pool:
        for scan in pool.map(_scan, shards):
            yield _counted(scan, work)


def _counted(scan: _Scan, work: LongWork) -> _Scan:
    work.add(len(scan.names))
    return scan


def _scan(shard: str) -> _Scan:
    try:
        with open(shard, "rb") as file:
            state = _state(os.fstat(file.fileno()))
            samples = _samples(shard, file)
            rows = [(*_place(shard, base, files), _label(shard, base, files, file)) for base, files in samples.items()]
    except OSError as error:
        raise UserError(f"cannot read shard {shard}: {error.strerror or error}") from error
    names = [files["image"].name for files in samples.values()]
    return _Scan(names, np.array(rows, dtype=np.int64).reshape(-1, 3).T, state)


def _samples(shard: str, file: BinaryIO) -> Dict[str, Members]:
    """Members by base name. Files of other kinds are left out."""
    samples: Dict[str, Members] = {}
    for member in _members(shard, file):
        folder, slash, name = member.name.rpartition("/")
        base, _, kind = name.partition(".")
        role = "image" if f".{kind.lower()}" in SUFFIXES else kind.lower()
        if not base or role not in ("image", *LABELS):  # without a base name: hidden, such as a Mac's ._7.jpg
            continue
        files = samples.setdefault(f"{folder}{slash}{base}", {})
        if role in files:
            raise UserError(
                f"{shard} has two samples named {folder}{slash}{base}: {files[role].name} and {member.name}.\n"
                "       Files belong to one sample where their names agree up to the first dot; give each sample its own."
            )
        files[role] = member
    return samples


def _members(shard: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    if file.read(6).startswith(COMPRESSED_MAGIC):
        raise UserError(compressed(shard))
    file.seek(0)
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # closes nothing: the file is the caller's
    except tarfile.TarError as error:
        raise UserError(
            f"{shard} is not a tar file ({error}).\n       Take it away, or copy or download it again."
        ) from error
    try:
        yield from (member for member in tar if member.isreg())
        reason = "no end mark"
    except tarfile.TarError as error:
        reason = str(error)
    # tarfile takes whatever is no header for the end.
    if os.pread(file.fileno(), BLOCK, tar.offset) != bytes(BLOCK):
        raise UserError(
            f"{shard} is cut short or damaged at byte {tar.offset:,} ({reason}).\n       Copy or download it again."
        )


def _place(shard: str, base: str, files: Members) -> Tuple[int, int]:
    """Offset and size of a sample's image, in bytes."""
    if "image" not in files:
        raise UserError(
            f"{shard}: sample {base} has no image, only {', '.join(member.name for member in files.values())}.\n"
            f"       Its name up to the first dot, then one of {', '.join(SUFFIXES)}."
        )
    return files["image"].offset_data, files["image"].size


def _label(shard: str, base: str, files: Members, file: BinaryIO) -> int:
    role = next((role for role in LABELS if role in files), None)
    if role is None:
        raise UserError(
            f"{shard}: sample {base} has no label, only {files['image'].name}.\n"
            f"       {base}.cls (a whole number) or {base}.json (an object with the key {', '.join(JSON_KEYS)}) is missing."
        )
    member = files[role]
    content = os.pread(file.fileno(), member.size, member.offset_data)
    label = _number(content) if role == "cls" else _number_in_json(content)
    if label is None or not 0 <= label <= LARGEST_LABEL:
        wanted = "a whole number" if role == "cls" else f"an object with a whole number as {' or '.join(JSON_KEYS)}"
        shown = content.decode(errors="replace").strip()
        raise UserError(
            f"{shard}: {member.name} holds {shown[:60]!r}.\n       It must be {wanted}, the class, counted from 0."
        )
    return label


def _number(content: bytes) -> Optional[int]:
    text = content.strip()
    return int(text) if text.isdigit() and len(text) <= 20 else None


def _number_in_json(content: bytes) -> Optional[int]:
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    found = [fields[key] for key in JSON_KEYS if key in fields] if isinstance(fields, dict) else []
    return found[0] if found and type(found[0]) is int else None  # not True, which is an int too


def _names_file(shards: Sequence[str]) -> Optional[Path]:
    """The list of class names beside the shards, or beside the train/ or validation/ that holds them."""
    folder = Path(shards[0]).parent
    in_split_folder = any(folder.name in names for names in FOLDERS.values())
    places = (folder, folder.parent) if in_split_folder else (folder,)
    return next((place / name for place in places for name in CLASS_FILES if (place / name).is_file()), None)


def _read_names(path: Path) -> List[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def _check_named(source: WebDataset, names_file: Optional[Path]) -> None:
    beyond = np.flatnonzero(source.labels >= source.num_classes)
    if len(beyond):
        first = int(beyond[0])
        raise UserError(
            f"{source.where(first)} has label {source.labels[first]}, but {names_file} names {source.num_classes} classes, "
            f"0 to {source.num_classes - 1}.\n       Add the names that are missing, one a line, or take the file away."
        )
