"""Named tensors in `.safetensors` files: one file, or parts with an index in Hugging Face's form. No pickle is ever read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errors import UserError

BLOCK = 1 << 20  # bytes that are digested at a time


@dataclass(frozen=True)
class TensorFiles:
    """Which file holds which tensor, and of what shape; tensors are read only when asked for.

    Of files whose `digests` (by name, SHA-256) are known, those that tensors are read from are checked first.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, Tuple[int, ...]]
    digests: Mapping[str, str] = field(default_factory=dict)

    def read(self, names: Iterable[str]) -> Dict[str, Tensor]:
        """The named tensors, each file opened once. Raises KeyError for a name that is not there."""
        by_file: Dict[Path, List[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        tensors = {}
        for path, wanted in by_file.items():
            check_digest(path, self.digests)
            with safe_open(str(path), framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in wanted})
        return tensors


def open_tensor_files(paths: Iterable[Path], digests: Optional[Mapping[str, str]] = None) -> TensorFiles:
    """Reads the headers of `.safetensors` files. Raises UserError for a missing or damaged one, naming it."""
    files: Dict[str, Path] = {}
    shapes: Dict[str, Tuple[int, ...]] = {}
    for path in paths:
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    files[name] = path
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} cannot be read as safetensors: {error}.\n       Use another checkpoint."
            ) from error
    return TensorFiles(files, shapes, digests or {})


def open_indexed(folder: Path, stem: str, digests: Optional[Mapping[str, str]] = None) -> TensorFiles:
    """Opens `<stem>.safetensors.index.json` and its parts. Raises UserError where the index or a part is missing."""
    index_path = index_of(folder, stem)
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        paths = sorted({folder / _plain(str(file)) for file in weight_map.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index_path} is missing or damaged ({error}).\n       Use another checkpoint.") from error
    check_digest(index_path, digests or {})
    found = open_tensor_files(paths, digests)
    missing = sorted(set(weight_map) - set(found.files))
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}, which its index names.\n       Use another checkpoint.")
    return found


def _plain(name: str) -> str:
    """A file's name. Raises ValueError for one that would lead out of the folder."""
    if Path(name).name != name:
        raise ValueError(f"{name} is not a file's name")
    return name


def index_of(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.safetensors.index.json"


def part_name(stem: str, part: int, num_parts: int) -> str:
    return f"{stem}-{part + 1:05d}-of-{num_parts:05d}.safetensors"


def write_part(path: Path, tensors: Mapping[str, Tensor], metadata: Optional[Mapping[str, str]] = None) -> None:
    """Writes one file of tensors, with more `metadata` in its header, and waits until it is on the disk. Raises OSError."""
    try:
        save_file(_apart(tensors), str(path), metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # of the system's errors it only has the text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(*(int(number[1]), os.strerror(int(number[1]))) if number else (None, str(error))) from error
    sync_path(path)


def _apart(tensors: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """The same, contiguous, with memory of their own where two of them share it: the format knows neither."""
    owners = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: (tensor.clone() if owners[tensor.untyped_storage().data_ptr()] > 1 else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def write_index(folder: Path, stem: str, num_parts: int) -> None:
    """Writes the index over all parts, once they are all there."""
    paths = [folder / part_name(stem, part, num_parts) for part in range(num_parts)]
    found = open_tensor_files(paths)
    index = {
        "metadata": {"total_size": sum(path.stat().st_size for path in paths)},
        "weight_map": {name: path.name for name, path in sorted(found.files.items())},
    }
    write_text(index_of(folder, stem), json.dumps(index, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text and waits until it is on the disk."""
    path.write_text(text, encoding="utf-8")
    sync_path(path)


def digest_of(path: Path) -> str:
    """A file's SHA-256, as `sha256sum` prints it. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check_digest(path: Path, digests: Mapping[str, str]) -> None:
    """Raises UserError where a file is not what was written, if its digest is known."""
    expected = digests.get(path.name)
    if expected is None:
        return
    try:
        found = digest_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).\n       Use another checkpoint.") from error
    if found != expected:
        raise UserError(f"{path} is damaged: its bytes are not those that were saved.\n       Use another checkpoint.")


def sync_path(path: Path) -> None:
    """Waits until a file or a folder's entries are on the disk."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
