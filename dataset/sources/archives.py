"""Files of a published archive, read from its extracted folder or straight from the .tar.gz."""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Sequence

from errors import UserError


class Archive(NamedTuple):
    """Where an archive's files are: `path` is the extracted folder, or a tar file that holds `folder`."""

    path: Path
    folder: str

    def where(self, name: str) -> str:
        """A file's place, for messages."""
        return f"{self.path}/{name}" if self.path.is_dir() else f"{self.path}:{self.folder}/{name}"

    def read(self, names: Sequence[str]) -> Dict[str, bytes]:
        """Contents of some of its files. Raises UserError where one is missing or unreadable."""
        try:
            contents = _from_folder(self.path, names) if self.path.is_dir() else _from_tar(self, names)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"cannot read {self.path}: {_first_line(error)}\n       If it was cut short, delete it and fetch it again."
            ) from error
        missing = [name for name in names if name not in contents]
        if missing:
            raise UserError(
                f"{self.where(missing[0])} is missing.\n       Extract the archive again, or delete {self.path} to fetch it."
            )
        return contents


def _first_line(error: Exception) -> str:
    """tarfile goes on to list every kind of compression that it has tried."""
    return str(error).split(":\n")[0].splitlines()[0] if str(error) else type(error).__name__


def find_archive(root: Path, folder: str, archive: str) -> Optional[Archive]:
    """The extracted `folder` in `root`, or `root` itself if that is its name, else the `archive` file, else None."""
    if (root / folder).is_dir():
        return Archive(root / folder, folder)
    if root.is_dir() and root.resolve().name == folder:
        return Archive(root, folder)
    return Archive(root / archive, folder) if (root / archive).is_file() else None


def _from_folder(path: Path, names: Sequence[str]) -> Dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in names if (path / name).exists()}


def _from_tar(archive: Archive, names: Sequence[str]) -> Dict[str, bytes]:
    wanted = {f"{archive.folder}/{name}": name for name in names}
    contents = {}
    with tarfile.open(archive.path) as tar:
        # In the order of the file: going back in a compressed one means reading it from the start.
        for member in tar:
            name = wanted.get(member.name[2:] if member.name.startswith("./") else member.name)
            stream = tar.extractfile(member) if name is not None and member.isfile() else None
            if name is not None and stream is not None:
                contents[name] = stream.read()
    return contents
