"""A JSON file of a checkpoint, read with one message for whatever is wrong with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Mapping

from errors import UserError


def read_json(path: Path) -> Dict[str, Any]:
    """Raises UserError where the file is missing, or holds no JSON object."""
    try:
        details = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}).\n       Use another checkpoint.") from error
    if not isinstance(details, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object.\n       Use another checkpoint.")
    return details


def seal(details: Mapping[str, Any]) -> str:
    """SHA-256 of what an object holds, whatever the order and the white space."""
    return hashlib.sha256(json.dumps(details, sort_keys=True).encode()).hexdigest()


def without_seal(details: Dict[str, Any]) -> Dict[str, Any]:
    """What was sealed with a "digest" of the rest, or never was. Raises ValueError where the rest is no longer that."""
    rest = {name: value for name, value in details.items() if name != "digest"}
    if details.get("digest", seal(rest)) != seal(rest):
        raise ValueError("it is not what was saved")
    return rest


def write_json(path: Path, details: Dict[str, Any]) -> None:
    path.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
