"""Which pictures a command line means: files, folders, patterns that no shell has expanded, and a list on standard input."""

from __future__ import annotations

import glob
import os
import sys
from typing import BinaryIO, List, Sequence

from dataset.sources.image_files import SUFFIXES, is_image_name, walk
from errors import UserError, printable

STANDARD_INPUT = "-"


def find_pictures(words: Sequence[str], standard_input: BinaryIO) -> List[str]:
    """Paths in the order of the words; within a folder or a pattern they are sorted.

    A file is taken whatever its name ends in. Raises UserError for a word that means nothing, before any work is done; what
    only the list of standard input names is taken as it is, and is a bad picture later where it is missing.
    """
    if words.count(STANDARD_INPUT) > 1:
        raise UserError("- stands twice: standard input can be read once.")
    found: List[str] = []
    for word in words:
        found += _listed(standard_input) if word == STANDARD_INPUT else _meant_by(os.path.expanduser(word))
    if not found:
        raise UserError("standard input names no pictures. Give a name a line.")
    return found


def _listed(standard_input: BinaryIO) -> List[str]:
    """A name a line, or names that end in null bytes, as `find -print0` writes them; folders stand for what is in them."""
    if standard_input.isatty():
        print("names of pictures, one a line; Ctrl-D ends the list:", file=sys.stderr, flush=True)
    content = standard_input.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    names = [os.path.expanduser(os.fsdecode(line)) for line in lines if line.strip()]
    return [path for name in names for path in _expanded(name)]


def _meant_by(word: str) -> List[str]:
    if os.path.isdir(word):
        return _filled(word, _in_folder(word))
    if os.path.exists(word):
        return [word]
    if not glob.has_magic(word):
        raise UserError(f"{printable(word)} does not exist.\n       Name a file, a folder or a pattern.")
    # As if the shell had expanded it; `**` meets a file below each of its folders.
    paths = (path for match in sorted(glob.glob(word, recursive=True)) for path in _expanded(match))
    return _filled(word, list(dict.fromkeys(paths)))


def _expanded(path: str) -> List[str]:
    return _in_folder(path) if os.path.isdir(path) else [path]


def _filled(word: str, paths: List[str]) -> List[str]:
    if not paths:
        what = "holds no pictures" if os.path.isdir(word) else "matches no pictures"
        raise UserError(
            f"{printable(word)} {what} ({', '.join(SUFFIXES)}).\n       Name a file, a folder or a pattern."
        )
    return paths


def _in_folder(folder: str) -> List[str]:
    """The image files below a folder, sorted by path."""
    return sorted(os.path.join(path, name) for path, _, files in walk(folder) for name in files if is_image_name(name))
