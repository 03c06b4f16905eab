"""What a source keeps for each of millions of samples, in files: names read where they lie, numbers mapped.

Nothing of it is resident in a loader process but the pages of numbers that it touches; what has been read stays in the system's
page cache, once for all processes. An index that took long to make is kept in a cache (`cached_index`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, Optional, Tuple

import numpy as np

from errors import UserError

NAMES, ENDS, ABOUT, ARRAYS = "names.bin", "ends", "about.json", "arrays"
FORMAT = 2  # of the files; another one makes a new cache entry
PREFIX, A_DAY = ".pipevit-index-", 86400.0


class Index:
    """`index.name(i)` of N samples, `index[key]` arrays of numbers, `index.about` what else its maker noted (JSON)."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, ValueError, LookupError or TypeError where something of it is missing or damaged."""
        self._folder = folder
        self.about: Dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        self._arrays = {key: np.load(folder / f"{key}.npy", mmap_mode="r") for key in self.about.pop(ARRAYS)}
        ends = self._arrays[ENDS]
        if os.stat(folder / NAMES).st_size != (ends[-1] if len(ends) else 0):
            raise ValueError("names cut short")
        self._names = os.open(folder / NAMES, os.O_RDONLY)

    def __reduce__(self) -> Any:
        return Index, (self._folder,)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._names)

    def __len__(self) -> int:
        return len(self._arrays[ENDS])

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[key]

    def name(self, i: int) -> str:
        """Name of sample i, such as a path relative to what the index is of."""
        ends = self._arrays[ENDS]
        begin = int(ends[i - 1]) if i else 0
        return os.fsdecode(os.pread(self._names, int(ends[i]) - begin, begin))


def write_index(folder: Path, names: Iterable[str], arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes an index of names with numbers beside them into an existing folder."""
    with open(folder / NAMES, "wb") as file:
        lengths = np.fromiter((file.write(os.fsencode(name)) for name in names), dtype=np.int64)
    arrays = {**arrays, ENDS: np.cumsum(lengths, dtype=np.int64)}
    for key, array in arrays.items():
        np.save(folder / f"{key}.npy", array, allow_pickle=False)
    (folder / ABOUT).write_text(json.dumps({**about, ARRAYS: list(arrays)}), encoding="utf-8")


def temporary_index(names: Iterable[str], arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Index:
    """An index that lasts as long as this process."""
    folder = _temporary_folder(None)
    write_index(folder, names, arrays, about)
    return Index(folder)


def cached_index(key: str, is_current: Callable[[Index], bool], make: Callable[[Path], bool]) -> Index:
    """The index of `key` from the cache, or a new one.

    `is_current` tells whether a kept one still describes the data. `make` writes a new one into a folder and tells whether it
    may be kept. Processes that ask at once wait for the first: one of them does the work.
    """
    digest = hashlib.sha256(os.fsencode(f"{FORMAT} {key}")).hexdigest()[:32]
    cache = _cache_folder()
    kept = cache / digest if cache is not None else None
    with _locked(kept):
        index = _open_current(kept, is_current)
        if index is not None:
            return index
        new, may_be_kept = _made(cache, make)
        if not may_be_kept or kept is None:
            return Index(new)
        if kept.exists():
            # Folders cannot be swapped; a reader that has the old one open goes on with it.
            os.replace(kept, _temporary_folder(cache) / "old")
        os.replace(new, kept)
        return Index(kept)


def _made(cache: Optional[Path], make: Callable[[Path], bool]) -> Tuple[Path, bool]:
    """A folder with a new index, and whether it may be kept; elsewhere where there is no room in the cache."""
    if cache is not None:
        with contextlib.suppress(OSError):
            new = _temporary_folder(cache)
            return new, make(new)
    try:
        new = _temporary_folder(None)
        make(new)
    except OSError as error:
        raise UserError(
            f"no room for an index of the data set in {tempfile.gettempdir()}: {error.strerror or error}.\n"
            "       Make some, or name a folder with room in the variable TMPDIR."
        ) from error
    return new, False


def _open_current(kept: Optional[Path], is_current: Callable[[Index], bool]) -> Optional[Index]:
    if kept is None or not kept.is_dir():
        return None
    try:
        index = Index(kept)
        return index if is_current(index) else None
    except (OSError, ValueError, EOFError, LookupError, TypeError, AttributeError):  # damaged: made again
        return None


def _cache_folder() -> Optional[Path]:
    """Where indexes are kept, or None where nothing can be written."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root) / "pipevit" / "indexes"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _temporary_folder(beside: Optional[Path]) -> Path:
    """A new folder, removed with all in it when this process ends; unless it is renamed by then."""
    _remove_leftovers(beside or Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside))
    # Unlike `atexit`, this runs in processes of `multiprocessing` too, and not in those forked from this one.
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=0)
    return folder


def _remove_leftovers(place: Path) -> None:
    """What processes that were killed have left behind."""
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > A_DAY:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(kept: Optional[Path]) -> Iterator[None]:
    """One process at a time, where the file system can do that."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            if kept is not None:
                fcntl.flock(stack.enter_context(open(f"{kept}.lock", "w")), fcntl.LOCK_EX)
        yield
