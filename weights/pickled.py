"""torch's `.bin` files: tensors by name, taken out by `weights_only` loading, which runs no code that a file brings along."""

from __future__ import annotations

import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Dict, Iterable, Mapping

import torch
from torch import Tensor

from errors import UserError
from weights.saved_model import TensorsInMemory

SAFE_SINCE = (2, 6)  # before, `weights_only` could be tricked into running code (CVE-2025-32434)


def read_bins(paths: Iterable[Path]) -> TensorsInMemory:
    """The tensors of one file or of several. Raises UserError for a file that is damaged or holds anything else."""
    tensors: Dict[str, Tensor] = {}
    for path in paths:
        for name, value in _read(path).items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise UserError(
                    f"{path} holds more than tensors by name: {name!r} is a {type(value).__name__}.\n"
                    "       Save the model's state_dict() alone, best as safetensors."
                )
            tensors[name] = value
    return TensorsInMemory(tensors)


def _read(path: Path) -> Dict[Any, Any]:
    _check_torch(path, torch.__version__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is of no use to the user
            loaded = torch.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {wanted[1]}, which is no tensor's" if wanted else "asks for more than tensors, or is damaged"
        raise UserError(f"{path} {what}; no code in it was run.\n       Use a checkpoint in safetensors.") from error
    except Exception as error:  # damaged bytes fail in any way
        raise UserError(f"{path} cannot be read: {_first_line(error)}.\n       Use another checkpoint.") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not tensors by name.\n       Use another checkpoint.")
    return loaded


def write_bin(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises OSError where the file cannot be written: torch itself would end the process on a full disk."""
    content = io.BytesIO()
    torch.save(dict(tensors), content)
    path.write_bytes(content.getbuffer())


def is_safe(version: str) -> bool:
    """Whether torch of this version reads a pickle without running code of it."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) >= SAFE_SINCE


def _check_torch(path: Path, version: str) -> None:
    if not is_safe(version):
        raise UserError(
            f"{path} is a pickle, which torch {version} cannot read safely (CVE-2025-32434).\n"
            "       Convert it elsewhere, with torch 2.6 or later: python convert.py FROM TO --to huggingface."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
