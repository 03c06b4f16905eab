"""Finds out what kind of checkpoint a path or a name is, and opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from errors import UserError, user_path
from weights.google_npz import open_npz
from weights.hub import fetch, is_hub_name
from weights.hugging_face import FILES, open_hugging_face
from weights.json_file import read_json
from weights.own import open_step_folder, step_folder_of
from weights.reference_app import FILE, open_app
from weights.saved_model import SavedModel
from weights.timm_file import open_timm_file
from weights.timm_folder import open_timm_folder
from weights.whole_model import check_complete


def open_model(source: str, use_ema: bool = True) -> SavedModel:
    """The model that a path or a name on the hub names; raises UserError for what is no checkpoint, or is damaged.

    Of safetensors only headers are read.
    """
    path = fetch(source) if is_hub_name(source) else user_path(source)
    if path.name in FILES and (path.parent / "config.json").is_file():
        path = path.parent  # which says more of the model than the file
    step = None if (path / "config.json").is_file() else step_folder_of(path)
    saved = open_step_folder(source, step, use_ema) if step is not None else _open_foreign(source, path)
    if saved is None:
        raise UserError(_not_a_checkpoint(source, path))
    check_complete(saved)
    return saved


def _open_foreign(source: str, path: Path) -> Optional[SavedModel]:
    if (path / "config.json").is_file():
        is_timm = "architecture" in read_json(path / "config.json")
        return open_timm_folder(source, path) if is_timm else open_hugging_face(source, path)
    if (path / FILE).is_file():
        return open_app(source, path / FILE)
    readers = {".safetensors": open_timm_file, ".npz": open_npz, ".bin": open_app}
    if path.suffix in readers and path.is_file():
        return readers[path.suffix](source, path)
    return None


def _not_a_checkpoint(source: str, path: Path) -> str:
    what = "is no file or folder here, nor a name on the hub (owner/name)"
    if path.is_dir():
        what = "holds no checkpoint: no step, no config.json, no pytorch_model.bin"
    elif path.exists():
        what = "is a file of another kind"
    return (
        f"{source} {what}.\n"
        "       Name a run or step folder, a Hugging Face or timm folder or hub name, or a .safetensors, .npz or .bin file."
    )
