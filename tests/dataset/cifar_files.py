"""CIFAR's archives as they are published: Python 2 pickles in a .tar.gz."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}


def archive_of(files: Mapping[str, bytes], kind: str, path: Path) -> None:
    """Writes the archive of `kind` ("cifar10", "cifar100") from its files' contents."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{FOLDERS[kind]}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def python2_pickle(fields: Dict[bytes, Any]) -> bytes:
    """Protocol 2 with byte strings and numpy's old module name, as the published files have them."""
    return Python2Pickler().dumps(fields).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


class Python2Pickler:
    """Writes bytes as Python 2's `str` (opcodes U and T), which Python 3's pickler cannot."""

    def dumps(self, value: Any) -> bytes:
        return b"\x80\x02" + self._dump(value) + b"."

    def _dump(self, value: Any) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(self._dump(key) + self._dump(item) for key, item in value.items()) + b"u"
        if isinstance(value, (list, tuple)):
            return b"](" + b"".join(self._dump(item) for item in value) + b"e"
        if isinstance(value, bytes):
            return b"T" + len(value).to_bytes(4, "little") + value
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        assert value.dtype == np.uint8
        shape = b"(" + b"".join(self._dump(side) for side in value.shape) + b"t"
        dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        return array + b"(K\x01" + shape + dtype + b"\x89" + self._dump(value.tobytes()) + b"tb"
