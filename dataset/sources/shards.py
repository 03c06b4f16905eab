"""Finds the tar shards of a split: in folders, by words in their names, or by a pattern."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Iterator, List, Sequence

from dataset.sources.folder import FOLDERS
from dataset.sources.places import listing
from errors import UserError, user_path

VALIDATION_WORDS = (("val", "validation"), ("test",))  # the second where no shard has one of the first
COMPRESSED_NAME = re.compile(r"\.(tgz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)


def find_shards(dataset_path: str, split: str) -> List[str]:
    """Paths of a split's shards, sorted; empty where there are none for validation. Raises UserError where for training."""
    path = user_path(dataset_path)
    if not path.is_dir():
        return _matching(str(path), split)
    if _tars(path):
        return _of_split(path, _tars(path), split)
    folder = next((path / name for name in FOLDERS[split] if (path / name).is_dir()), None)
    if folder is None and split == "validation":
        return []
    shards = [] if folder is None else _tars(folder)
    if not shards:
        raise UserError(_no_shards(folder or path))
    return shards


def _tars(folder: Path) -> List[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_file())
    shards = [name for name in names if name.lower().endswith(".tar")]
    for name in names:
        if COMPRESSED_NAME.search(name) and COMPRESSED_NAME.sub(".tar", name) not in shards:
            raise UserError(compressed(f"{folder}/{name}"))
    return [f"{folder}/{name}" for name in shards]


def _of_split(folder: Path, shards: Sequence[str], split: str) -> List[str]:
    """Of shards in one folder, those whose names tell that they are of the split; the training set's need not tell."""
    words = {shard: set(re.split(r"[-_.]", os.path.basename(shard).lower())) for shard in shards}
    told = [[shard for shard in shards if words[shard].intersection(group)] for group in VALIDATION_WORDS]
    if split == "validation":
        return told[0] or told[1]
    train = [shard for shard in shards if shard not in set(told[0] + told[1])]
    if not train:
        raise UserError(
            f"{folder} has shards of a validation or test set only, such as {os.path.basename(shards[0])}.\n"
            "       Shards without these words in their names would be the training set."
        )
    return train


def _matching(pattern: str, split: str) -> List[str]:
    if split == "validation":
        return next((found for found in map(_files, _validation_patterns(pattern)) if found), [])
    if os.path.isfile(pattern):
        return [pattern]
    found = _files(pattern)
    missing = [path for path in _expand(pattern) if not _is_glob(path) and not os.path.isfile(path)]
    if not found:
        raise UserError(
            f"dataset_path = {pattern} is neither a folder nor the name or pattern of files.\n"
            "       Give the folder of the .tar shards, or a pattern such as 'images-train-{000000..000146}.tar'."
        )
    if missing:
        raise UserError(
            f"dataset_path = {pattern}: {missing[0]} is missing{f', {len(missing)} files in all' if missing[1:] else ''}."
            "\n       Get it, or leave it out of the pattern."
        )
    return found


def _files(pattern: str) -> List[str]:
    """Existing files of a pattern, sorted."""
    paths = {path for part in _expand(pattern) for path in (glob.glob(part) if _is_glob(part) else [part])}
    return sorted(path for path in paths if os.path.isfile(path))


def _validation_patterns(pattern: str) -> Iterator[str]:
    # A validation set has fewer shards than its training set, or, with small ones, more: any number.
    anywhere = re.sub(r"\{\d+\.\.\d+\}", "[0-9]*", pattern)
    folder, name = os.path.split(anywhere)
    for word in ("validation", "val"):
        for found in (os.path.join(folder, name.replace("train", word)), anywhere.replace("train", word)):
            if found != anywhere:
                yield found


def _is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def _expand(pattern: str) -> List[str]:
    """_expand("a-{08..10}.{tar,TAR}") -> ["a-08.tar", "a-08.TAR", "a-09.tar", ...]; as a shell does it."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, choices = found.groups()
    if choices is None:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        parts = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    else:
        parts = choices.split(",")
    return [path for part in parts for path in _expand(pattern[: found.start()] + part + pattern[found.end() :])]


def compressed(path: str) -> str:
    return (
        f"{path} is compressed, and cannot be read at random.\n       Decompress it: a .tar of images is hardly larger."
    )


def _no_shards(folder: Path) -> str:
    there = listing((entry.name for entry in os.scandir(folder)), "it is empty")
    return (
        f"{folder} has no shards (.tar files); {there}.\n"
        "       Expected: the shards, or train/ with shards, and validation/ or val/ alike."
    )
