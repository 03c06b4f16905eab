"""A saved model as a whole model that can be asked: what its card leaves open is filled in, its weights are checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Optional, Tuple

import torch

from errors import UserError, nearest, user_path
from models.vit import VisionTransformer
from weights.card import ModelCard
from weights.saved_model import SavedModel


def complete_card(
    saved: SavedModel, num_heads: Optional[int] = None, class_names: Optional[Tuple[str, ...]] = None
) -> ModelCard:
    """The model's card with what the user adds to it. Raises UserError where it does not suffice for answers."""
    card = saved.card
    arch = card.arch
    if arch.num_labels == 0:
        raise UserError(
            f"{saved.source} has no classification head: it was saved to be fine-tuned.\n"
            "       Train one with finetune.py --pretrained-checkpoint, and name that run."
        )
    if arch.num_channels not in (1, 3):
        raise UserError(f"{saved.source} takes pictures of {arch.num_channels} channels; files here have 1 or 3.")
    heads = _heads(saved, num_heads)
    names = card.class_names if class_names is None else class_names
    if names and len(names) != arch.num_labels:
        whose = "--class-names" if class_names is not None else saved.source
        raise UserError(f"{whose} names {len(names)} classes, but the model has {arch.num_labels}.")
    return replace(card, arch=replace(arch, num_heads=heads), class_names=names)


def _heads(saved: SavedModel, given: Optional[int]) -> int:
    arch = saved.card.arch
    heads = arch.num_heads or given
    if not heads:
        raise UserError(
            f"{saved.source} does not tell its number of attention heads, which weights do not show.\n"
            f"       Give it with --num-heads. Published models have 64 features a head: {arch.embed_dim} / 64 = "
            f"{arch.embed_dim // 64}."
        )
    if given and given != heads:
        raise UserError(f"--num-heads {given}: {saved.source} has {heads}. Leave the flag out.")
    if arch.embed_dim % heads:
        raise UserError(f"--num-heads {heads} does not divide the model's width, {arch.embed_dim}.")
    return heads


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


def load_model(saved: SavedModel, card: ModelCard, device: torch.device) -> VisionTransformer:
    """The whole model in float32, ready for answers. Raises UserError where weights are missing, surplus or of another shape."""
    with torch.device("meta"):
        model = VisionTransformer(card.arch)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_fit(saved, wanted)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in saved.weights.read(list(wanted)).items():
            model.get_parameter(name).copy_(tensor)
    return model.eval()


def _check_fit(saved: SavedModel, wanted: Dict[str, Tuple[int, ...]]) -> None:
    found = saved.weights.shapes
    for name, shape in wanted.items():
        if found.get(name) != shape:
            has = f"has {name} of shape {list(found[name])}" if name in found else f"lacks {name}"
            raise UserError(f"{saved.source} {has}; the model needs {list(shape)}.\n       Use another checkpoint.")
    surplus = next((name for name in found if name not in wanted), None)
    if surplus is not None:
        raise UserError(
            f"{saved.source} holds {surplus}, which this model has no place for: its answers would not be those of the "
            f"model that was trained.{nearest(surplus, wanted)}\n       Use another checkpoint."
        )
