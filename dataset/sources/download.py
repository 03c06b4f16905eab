"""Fetches a missing CIFAR archive with torchvision, which knows its address and checksum."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from errors import UserError

TIMEOUT_SECONDS = 30  # without an answer


def download_cifar(dataset: str, root: Path, folder: str, archive: str) -> None:
    """Puts `archive` of "cifar10" or "cifar100" into `root`, whole or not at all.

    Processes that need it at the same time wait for the first. Raises UserError where it cannot be had.
    """
    target = root / archive
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(root):
            if not target.exists():
                _fetch(dataset, target)
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError for a wrong checksum
        raise UserError(
            f"dataset = {dataset} is not at dataset_path = {root}: neither {folder}/ nor {archive} is there, and "
            f"downloading it failed ({error}).\n"
            f"       Put the published {archive} there, or give the folder that holds it: --dataset-path FOLDER"
        ) from error


def _fetch(name: str, target: Path) -> None:
    from dataset.transforms import torchvision_operators  # noqa: F401  (torchvision may need it)

    # isort: split
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import download_url

    source = CIFAR10 if name == "cifar10" else CIFAR100
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download_url(source.url, folder, filename=target.name, md5=source.tgz_md5)
            os.replace(Path(folder) / target.name, target)
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # and with it the lock
