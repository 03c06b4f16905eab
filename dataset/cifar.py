"""CIFAR-10 and CIFAR-100 from their published Python archives, held in memory.

The archives are pickles. They are read by an unpickler that knows arrays and plain containers only, so a file that was
tampered with cannot run anything.
"""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from errors import UserError

SIDE = 32
# name -> (folder in the archive, archive, training files, validation files, key of the labels, file and key of class names)
KINDS: Dict[str, Tuple[str, str, Tuple[str, ...], Tuple[str, ...], str, str, str]] = {
    "cifar10": (
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "labels",
        "batches.meta",
        "label_names",
    ),
    "cifar100": (
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        ("train",),
        ("test",),
        "fine_labels",
        "meta",
        "fine_label_names",
    ),
}
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class Cifar:
    """One split of CIFAR-10 (`kind` cifar10) or CIFAR-100 (cifar100), in `folder` as archive or unpacked."""

    in_memory = True

    def __init__(self, kind: str, folder: Optional[str], split: str) -> None:
        archive_folder, archive, training, validation, label_key, meta, names_key = KINDS[kind]
        read = _open_archive(kind, folder, archive_folder, archive)
        batches = [read(name) for name in (training if split == "train" else validation)]
        pixels = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
        self._images = torch.from_numpy(pixels.reshape(-1, 3, SIDE, SIDE))
        self.labels = np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for batch in batches])
        self.class_names = tuple(str(name) for name in read(meta)[names_key])
        self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        return self._images[index]


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which image archives have no use for")
        return super().find_class(module, name)


def _open_archive(
    kind: str, folder: Optional[str], archive_folder: str, archive: str
) -> Callable[[str], Dict[str, Any]]:
    """A function that reads a file of the archive, from the unpacked folder, the .tar.gz, or after downloading it."""
    root = Path(folder or f"data/{kind}")
    for candidate in (root / archive_folder, root):
        if (candidate / KINDS[kind][2][0]).is_file():
            return lambda name: _read_file(candidate / name)
    packed = root / archive
    if not packed.is_file():
        _download(kind, root, archive)
    return lambda name: _read_member(packed, f"{archive_folder}/{name}")


def _download(kind: str, root: Path, archive: str) -> None:
    """torchvision's download, checked by its published digest."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    import dataset.torchvision_operators  # noqa: F401

    published = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    try:
        download_url(published.url, str(root), filename=archive, md5=published.tgz_md5)
    except Exception as error:  # any network or disk failure: the user can bring the file by hand
        raise UserError(
            f"dataset = {kind} is not in {root} and cannot be downloaded ({type(error).__name__}: {error}).\n"
            f"       Put {archive} there, packed or unpacked, or name its folder with --dataset-path."
        ) from error


def _read_file(path: Path) -> Dict[str, Any]:
    try:
        with path.open("rb") as file:
            return _unpickle(file, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Unpack the archive again.") from error


def _read_member(packed: Path, member: str) -> Dict[str, Any]:
    try:
        with tarfile.open(packed) as archive:
            file = archive.extractfile(member)
            if file is None:
                raise KeyError(member)
            return _unpickle(file, f"{packed}:{member}")
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{packed} is damaged or lacks {member} ({error}). Download it again.") from error


def _unpickle(file: IO[bytes], name: str) -> Dict[str, Any]:
    try:
        content = _ArrayUnpickler(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: _text(value) for key, value in content.items()}
    except Exception as error:  # a pickle can fail in any way
        raise UserError(f"{name} is no CIFAR archive: {error}. Download it again.") from error


def _text(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        words: List[str] = [word.decode() for word in value]
        return words
    return value
