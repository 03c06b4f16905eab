"""A file or folder that appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from errors import UserError

MODEL_FILE = re.compile(
    r"((model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)|(config|preprocessor_config|run)\.json|.*\.index\.json)"
)


@contextmanager
def appearing(target: Path, overwrite: bool, is_folder: bool) -> Iterator[Path]:
    """Gives a path beside the target to write to; it takes the target's place at the end, or goes where writing fails.

    Raises UserError where the target is there and may not be replaced, or cannot be written.
    """
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise UserError(f"{target} is there already.\n       Give --overwrite, or another name.")
    if target.is_dir():
        _check_replaceable(target)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}{'' if is_folder else target.suffix}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_folder:
            partial.mkdir()
        yield partial
        _replace(partial, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}).") from error
    finally:
        _remove(partial)


def _check_replaceable(target: Path) -> None:
    """Raises UserError for a folder with anything in it that no model's folder has: a run with its steps, somebody's papers."""
    strange = next(
        (path for path in sorted(target.iterdir()) if path.is_dir() or not MODEL_FILE.fullmatch(path.name)), None
    )
    if strange is not None:
        raise UserError(
            f"{target} holds more than a model, such as {strange.name}: it is not replaced.\n       Give another name."
        )


def _replace(partial: Path, target: Path) -> None:
    """A folder cannot take another one's place in one go: the old one steps aside first, and comes back if that fails."""
    if not target.is_dir() or target.is_symlink():
        os.replace(partial, target)
        return
    aside = partial.with_name(partial.name + ".old")
    os.replace(target, aside)
    try:
        os.replace(partial, target)
    except BaseException:
        os.replace(aside, target)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()
