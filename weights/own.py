"""This project's own checkpoints: step folders, and run folders that hold them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Mapping, Optional

from torch import Tensor

from errors import UserError
from weights.card import ModelCard
from weights.saved_model import SavedModel
from weights.tensor_files import open_indexed, write_index, write_part

KIND = "step folder"
EMA_INDEX = "ema.safetensors.index.json"


def step_folder_of(path: Path) -> Optional[Path]:
    """A step folder itself, or the best step of a run folder, else its latest; None where it holds neither."""
    path = _one_later(path)
    for candidate in (path, path / "best", path / "latest"):
        if (candidate / "model.safetensors.index.json").is_file():
            return candidate
    return None


def _one_later(path: Path) -> Path:
    """step_<N + 1> where step_<N> is not there: the public app counts from 0, and configs name its last step so."""
    match = re.fullmatch(r"step_(\d+)", path.name)
    if match is None or path.exists():
        return path
    later = path.with_name(f"step_{int(match.group(1)) + 1}")
    return later if later.is_dir() else path


def open_step_folder(source: str, folder: Path, use_ema: bool = True) -> SavedModel:
    """The model of a step; with `use_ema` its averaged weights where there are any: they are what the run was judged by.

    Raises UserError for what is missing or damaged, naming it.
    """
    averaged = use_ema and (folder / EMA_INDEX).is_file()
    notes = ("the checkpoint's averaged weights are used (--use-ema false takes the others)",) if averaged else ()
    return SavedModel(source, KIND, _read_card(folder), open_indexed(folder, "ema" if averaged else "model"), notes)


def _read_card(folder: Path) -> ModelCard:
    path = folder / "run.json"
    try:
        return ModelCard.from_json(json.loads(path.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}).\n       Use another step.") from error


def write_step_folder(folder: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    """A step folder of weights alone, from which runs start."""
    write_part(folder, "model", 0, 1, tensors)
    write_index(folder, "model", 1)
    details = {"step": 0, "model": card.to_json()}
    (folder / "run.json").write_text(json.dumps(details, indent=1) + "\n", encoding="utf-8")
