"""A saved model as a module that computes, and whether its weights are all there."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Mapping, Tuple

import torch
from torch import Tensor

from errors import UserError, nearest
from models.architecture import Architecture
from models.vit import VisionTransformer
from weights.saved_model import SavedModel


def parameter_shapes(arch: Architecture) -> Dict[str, Tuple[int, ...]]:
    """Every parameter of the whole model, by name."""
    with torch.device("meta"):
        model = VisionTransformer(arch)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_complete(saved: SavedModel) -> None:
    """Raises UserError, naming it, for a parameter that is missing, too many, or of another shape than its card says."""
    _check_card(saved)
    wanted, found = parameter_shapes(saved.card.arch), saved.weights.shapes
    for name in [*wanted, *found]:
        if name not in found:
            raise UserError(f"{saved.source} lacks {name}.{nearest(name, found)}\n       Use a complete checkpoint.")
        if name not in wanted:
            raise UserError(
                f"{saved.source} holds {name}, which this ViT has no place for.{nearest(name, wanted)}\n"
                "       Its logits would not be those of the checkpoint: use one without it."
            )
        if wanted[name] != found[name]:
            raise UserError(
                f"{saved.source} has {name} of shape {list(found[name])}, the model makes it {list(wanted[name])}.\n"
                "       Use another checkpoint."
            )


def _check_card(saved: SavedModel) -> None:
    """Raises UserError for figures that no model has: cards are read from files of any origin."""
    card, arch = saved.card, saved.card.arch
    sizes = (*arch.image_size, *arch.patch_size, arch.num_channels, arch.embed_dim, arch.depth, arch.mlp_dim)
    counts = (arch.num_heads, arch.num_labels, arch.representation_size or 0)
    pixels = (arch.pixel_mean, arch.pixel_std)
    wrong = [
        ("sizes", not all(type(size) is int and size > 0 for size in sizes)),
        ("counts", not all(type(count) is int and count >= 0 for count in counts)),
        ("layer_norm_eps", not _is_between(arch.layer_norm_eps, 0.0, 1.0)),
        ("means or deviations of pixels", not all(len(values) in (1, arch.num_channels) for values in pixels)),
        ("deviations of pixels", not all(_is_between(value, 1e-6, 1e6) for value in arch.pixel_std)),
        ("the share of a picture that the crop keeps", not _is_between(card.eval_crop, 0.05, 1.0)),
    ]
    for what, is_wrong in wrong:
        if is_wrong:
            raise UserError(
                f"{saved.source} is damaged: it says {what} that no model has.\n       Use another checkpoint."
            )


def _is_between(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and least <= value <= most


def with_heads(saved: SavedModel, num_heads: int, asked_by: str = "--num-heads N") -> SavedModel:
    """The same with its number of attention heads, which shapes do not show. 0: as the checkpoint says.

    Raises UserError where neither says it, both do and differ, or the width is no multiple of it.
    """
    arch = saved.card.arch
    if not (num_heads or arch.num_heads):
        likely = f"; {arch.embed_dim // 64} would be usual" if arch.embed_dim % 64 == 0 else ""
        raise UserError(
            f"{saved.source} does not say how many attention heads it has, and shapes do not show it.\n"
            f"       Give {asked_by} (the width is {arch.embed_dim}{likely})."
        )
    if num_heads and arch.num_heads and num_heads != arch.num_heads:
        raise UserError(f"{saved.source} has {arch.num_heads} attention heads, not {num_heads}: leave --num-heads out.")
    heads = num_heads or arch.num_heads
    if heads < 1:
        raise UserError(f"{heads} attention heads are none: give 1 or more.")
    if arch.embed_dim % heads:
        raise UserError(f"{saved.source} has the width {arch.embed_dim}, which {heads} heads do not divide.")
    return replace(saved, card=replace(saved.card, arch=replace(arch, num_heads=heads)))


def build_whole(arch: Architecture, tensors: Mapping[str, Tensor]) -> VisionTransformer:
    """The model in evaluation mode, computing in float32 whatever its weights are stored in."""
    with torch.device("meta"):
        model = VisionTransformer(arch)
    for name in parameter_shapes(arch):
        owner, _, leaf = name.rpartition(".")
        # The positions' type is the one that the activations get (`VisionTransformer.embed`).
        value = tensors[name].float() if name == "pos_embed" else tensors[name]
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
    return model.eval()


def load_whole(saved: SavedModel, device: torch.device) -> VisionTransformer:
    """The whole model in float32, ready for answers."""
    return build_whole(saved.card.arch, saved.weights.read(saved.weights.shapes)).float().to(device)
