"""A JSON file of a checkpoint, read with one message for whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

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


def write_json(path: Path, details: Dict[str, Any]) -> None:
    path.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
