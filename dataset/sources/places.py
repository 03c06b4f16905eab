"""What messages of several sources say of the folders that they look in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Iterable

from errors import UserError, user_path

if TYPE_CHECKING:
    from config import Config

MOST_NAMED = 5


def data_folder(config: Config, contents: str, holds: str) -> Path:
    """The folder that `dataset_path` names. `contents` and `holds` say what belongs there. Raises UserError for none."""
    if not config.dataset_path:
        raise UserError(
            f"dataset = {config.dataset} needs dataset_path, the folder with {contents} in it: --dataset-path FOLDER"
        )
    root = user_path(config.dataset_path)
    if not root.is_dir():
        raise UserError(
            f"dataset_path = {config.dataset_path} is not a folder ({root.absolute()}).\n"
            f"       Give the folder that holds {holds}."
        )
    return root


def listing(names: Iterable[str], nothing: str) -> str:
    """What a folder holds instead of what was looked for: the first few names, or `nothing`."""
    found = sorted(names)
    return f"it holds {', '.join(found[:MOST_NAMED])}{', ...' if len(found) > MOST_NAMED else ''}" if found else nothing
