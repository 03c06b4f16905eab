"""Models on the Hugging Face hub by name: `owner/name`, timm's among them (`timm/…`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List

from errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DETAILS = ["config.json", "preprocessor_config.json"]
SAFE = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
PICKLED = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]


def is_hub_name(source: str) -> bool:
    """Whether this can only be a name on the hub: `owner/name`, with no such path and no folder `owner` here."""
    return NAME.fullmatch(source) is not None and not Path(source).exists() and not Path(source).parent.exists()


def fetch(name: str) -> Path:
    """The model's folder, downloaded or from the hub's cache: safetensors, or pickles where it has no others.

    Raises UserError, with the reason, where it is not to be had.
    """
    folder = _download(name, [*DETAILS, *SAFE])
    if not any(folder.glob("model*.safetensors")):
        folder = _download(name, [*DETAILS, *PICKLED])
    return folder


def _download(name: str, patterns: List[str]) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name} is no path here; for a name on the hub: pip install huggingface_hub") from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # many kinds, of several packages: network, name, access, disk
        raise UserError(
            f"{name} is no file or folder here, and is not to be had from the Hugging Face hub:\n       {_reason(error)}\n"
            "       Check the name and the network; a private or gated model needs `hf auth login`."
        ) from error


def _reason(error: BaseException) -> str:
    known = {
        "GatedRepoError": "its owner asks you to agree to terms first, on its page",
        "RepositoryNotFoundError": "the hub has no model of this name, or it is private",
        "LocalEntryNotFoundError": "the hub is not reached (offline?), and the cache does not have it",
        "OfflineModeIsEnabled": "offline mode is on (HF_HUB_OFFLINE), and the cache does not have it",
    }
    first_line = (str(error).strip().splitlines() or [""])[0]
    return known.get(type(error).__name__, f"{type(error).__name__}: {first_line}")
