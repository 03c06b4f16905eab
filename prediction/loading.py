"""A saved model that can be asked: what its card leaves open is filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Tuple

from errors import UserError, user_path
from weights.saved_model import SavedModel
from weights.whole_model import with_heads


def complete(
    saved: SavedModel, num_heads: Optional[int] = None, class_names: Optional[Tuple[str, ...]] = None
) -> SavedModel:
    """The same with what the user adds to its card. Raises UserError where it does not suffice for answers."""
    arch = saved.card.arch
    if arch.num_labels == 0:
        raise UserError(
            f"{saved.source} has no classification head: it was saved to be fine-tuned.\n"
            "       Train one with finetune.py --pretrained-checkpoint, and name that run."
        )
    if arch.num_channels not in (1, 3):
        raise UserError(f"{saved.source} takes pictures of {arch.num_channels} channels; files here have 1 or 3.")
    names = saved.card.class_names if class_names is None else class_names
    if names and len(names) != arch.num_labels:
        whose = "--class-names" if class_names is not None else saved.source
        raise UserError(f"{whose} names {len(names)} classes, but the model has {arch.num_labels}.")
    saved = with_heads(saved, num_heads or 0)
    return replace(saved, card=replace(saved.card, class_names=names))


def read_class_names(file: str) -> Tuple[str, ...]:
    """A name a line; empty lines at the end do not count. Raises UserError for a file that cannot be read."""
    try:
        lines = user_path(file).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"--class-names {file} cannot be read ({reason}). Give a text file with a name a line."
        ) from error
    return tuple(line.strip() for line in lines)
