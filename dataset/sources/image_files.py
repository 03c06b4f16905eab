"""Which files are images by their names, and all of them below a folder."""

from __future__ import annotations

import os
from typing import Iterator, List, Tuple, Union

from errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def is_image_name(name: str) -> bool:
    """Whether a file's name is an image's; hidden files are other programs' own."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def walk(root: Union[str, os.PathLike[str]]) -> Iterator[Tuple[str, os.stat_result, List[str]]]:
    """A folder and those below it, each once whatever links lead to it, hidden ones left out: path, state, names of files.

    Raises UserError for one that cannot be listed: its images would be missing without a word.
    """
    seen = set()
    for path, folders, files in os.walk(root, onerror=_cannot_list, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above, or a second one to the same
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield path, status, files


def _cannot_list(error: OSError) -> None:
    raise UserError(f"cannot list {error.filename}: {error.strerror}.\n       Its images would be missing.") from error
