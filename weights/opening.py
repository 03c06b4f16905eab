"""Finds out what kind of checkpoint a path or a name is, and opens it."""

from __future__ import annotations

from pathlib import Path

from errors import UserError, user_path
from weights.own import open_step_folder, step_folder_of
from weights.saved_model import SavedModel
from weights.timm_file import open_timm_file


def open_model(source: str, use_ema: bool = True) -> SavedModel:
    """The model that a path names. Only headers are read; raises UserError for what is no checkpoint, or is damaged."""
    path = user_path(source)
    step = step_folder_of(path)
    if step is not None:
        return open_step_folder(source, step, use_ema)
    if path.suffix == ".safetensors" and path.is_file():
        return open_timm_file(source, path)
    raise UserError(_not_a_checkpoint(source, path))


def _not_a_checkpoint(source: str, path: Path) -> str:
    what = "is not a step folder, a run folder or a file here"
    if path.is_dir():
        what = "holds no checkpoint of this project"
    elif path.exists():
        what = "is a file of another kind"
    return (
        f"{source} {what}.\n"
        "       Name a run folder, a step folder or a .safetensors file with timm's parameter names (this version reads\n"
        "       no other format and no hub)."
    )
