"""What Hugging Face calls the parameters of its ViT and DeiT, against timm's names."""

from __future__ import annotations

import re
from typing import Dict, Mapping, Tuple

from torch import Tensor

from models.architecture import Architecture

# transformers 5 has new names in memory; files keep those of transformers 4, but may have either.
NEW_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}


def plain_name(name: str) -> str:
    """A parameter's name without the name of the model that it is in, as transformers 4 has it."""
    name = re.sub(r"^(vit|deit)\.", "", name)
    for new, old in NEW_NAMES:
        name = re.sub(new, old, name)
    return name


def foreign_names(arch: Architecture, model: str = "") -> Dict[str, Tuple[str, ...]]:
    """timm's name of every parameter -> Hugging Face's; several where one of ours is theirs under each other.

    `model`: name of the encoder within the model, "vit." or "deit.", or nothing.
    """
    names: Dict[str, Tuple[str, ...]] = {
        "cls_token": (f"{model}embeddings.cls_token",),
        "pos_embed": (f"{model}embeddings.position_embeddings",),
    }
    if arch.distillation != "none":
        names["dist_token"] = (f"{model}embeddings.distillation_token",)
    layers: Dict[str, Tuple[str, ...]] = {"patch_embed.proj": (f"{model}embeddings.patch_embeddings.projection",)}
    for index in range(arch.depth):
        inner = {ours: tuple(f"{model}encoder.layer.{index}.{part}" for part in parts) for ours, parts in BLOCK.items()}
        layers.update({f"blocks.{index}.{ours}": parts for ours, parts in inner.items()})
    layers["norm"] = (f"{model}layernorm",)
    if arch.representation_size:
        layers["pre_logits.fc"] = (f"{model}pooler.dense",)
    if arch.num_labels:
        layers["head"] = ("cls_classifier" if arch.distillation == "heads" else "classifier",)
        if arch.distillation == "heads":
            layers["head_dist"] = ("distillation_classifier",)
    for kind in ("weight", "bias"):
        names.update({f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in parts) for ours, parts in layers.items()})
    return names


def split_up(tensors: Mapping[str, Tensor], names: Mapping[str, Tuple[str, ...]]) -> Dict[str, Tensor]:
    """timm's parameters as the foreign ones that they are made of."""
    parts = {ours: tensor.chunk(len(names[ours])) for ours, tensor in tensors.items()}
    return {name: part.contiguous() for ours in tensors for name, part in zip(names[ours], parts[ours])}
