"""This project's own checkpoints: step folders, and run folders that hold them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

from torch import Tensor

from errors import UserError
from weights.card import ModelCard
from weights.json_file import without_seal
from weights.saved_model import SavedModel
from weights.tensor_files import index_of, open_indexed, part_name, write_index, write_part, write_text

KIND = "step folder"


def step_folder_of(path: Path) -> Optional[Path]:
    """A step folder itself, or the best step of a run folder, else its latest; None where it holds neither."""
    path = _one_later(path)
    for candidate in (path, path / "best", path / "latest"):
        if index_of(candidate, "model").is_file():
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
    averaged = use_ema and index_of(folder, "ema").is_file()
    notes = ("the checkpoint's averaged weights are used (--use-ema false takes the others)",) if averaged else ()
    card, digests = _read_details(folder)
    return SavedModel(source, KIND, card, open_indexed(folder, "ema" if averaged else "model", digests), notes)


def _read_details(folder: Path) -> Tuple[ModelCard, Dict[str, str]]:
    """The model's card, and the SHA-256 of the step's files by name."""
    path = folder / "run.json"
    try:
        details = without_seal(json.loads(path.read_text(encoding="utf-8")))
        return ModelCard.from_json(details["model"]), dict(details.get("files", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}).\n       Use another step.") from error


def write_step_folder(folder: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    """A step folder of weights alone, from which runs start."""
    write_part(folder / part_name("model", 0, 1), {name: tensor.contiguous() for name, tensor in tensors.items()})
    write_index(folder, "model", 1)
    details = {"step": 0, "model": card.to_json()}
    write_text(folder / "run.json", json.dumps(details, indent=1) + "\n")
