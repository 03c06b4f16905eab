"""Named tensors in `.safetensors` files: one file, or parts with an index in Hugging Face's form. No pickle is ever read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Tuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from errors import UserError


@dataclass(frozen=True)
class TensorFiles:
    """Which file holds which tensor, and of what shape; tensors are read only when asked for."""

    files: Mapping[str, Path]
    shapes: Mapping[str, Tuple[int, ...]]

    def read(self, names: Iterable[str]) -> Dict[str, Tensor]:
        """The named tensors, each file opened once. Raises KeyError for a name that is not there."""
        by_file: Dict[Path, List[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        tensors = {}
        for path, wanted in by_file.items():
            with safe_open(str(path), framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in wanted})
        return tensors


def open_tensor_files(paths: Iterable[Path]) -> TensorFiles:
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
    return TensorFiles(files, shapes)


def open_indexed(folder: Path, stem: str) -> TensorFiles:
    """Opens `<stem>.safetensors.index.json` and its parts. Raises UserError where the index or a part is missing."""
    index_path = folder / f"{stem}.safetensors.index.json"
    try:
        weight_map = json.loads(index_path.read_text())["weight_map"]
        paths = sorted({folder / str(file) for file in weight_map.values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index_path} is missing or damaged ({error}).\n       Use another checkpoint.") from error
    found = open_tensor_files(paths)
    missing = sorted(set(weight_map) - set(found.files))
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}, which its index names.\n       Use another checkpoint.")
    return found


def part_name(stem: str, part: int, num_parts: int) -> str:
    return f"{stem}-{part + 1:05d}-of-{num_parts:05d}.safetensors"


def write_part(folder: Path, stem: str, part: int, num_parts: int, tensors: Mapping[str, Tensor]) -> None:
    """Writes one part and waits until it is on the disk."""
    path = folder / part_name(stem, part, num_parts)
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(path), metadata={"format": "pt"})
    sync_path(path)


def write_index(folder: Path, stem: str, num_parts: int) -> None:
    """Writes the index over all parts, once they are all there."""
    found = open_tensor_files(folder / part_name(stem, part, num_parts) for part in range(num_parts))
    paths = {folder / part_name(stem, part, num_parts) for part in range(num_parts)}
    index = {
        "metadata": {"total_size": sum(path.stat().st_size for path in paths)},
        "weight_map": {name: path.name for name, path in sorted(found.files.items())},
    }
    path = folder / f"{stem}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=1) + "\n")
    sync_path(path)


def sync_path(path: Path) -> None:
    """Waits until a file or a folder's entries are on the disk."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
