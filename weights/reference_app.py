"""The public PopTorch ViT app's pretraining checkpoints: `pytorch_model.bin` with names of its own, and nothing beside it.

Its fine-tuning checkpoints are Hugging Face folders (`hugging_face.py`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, List, Mapping, Tuple

from torch import Tensor

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.hugging_face_names import split_up
from weights.pickled import read_bins, write_bin
from weights.plain import plain_form
from weights.saved_model import SavedModel
from weights.translation import Recipe, translate

FILE = "pytorch_model.bin"
HEAD_WIDTH = 64  # of every model that the app knows: it has ViT-B alone, with 12 heads
BLOCK = {
    "norm1": ("attention_norm",),
    "attn.qkv": ("attn.query", "attn.key", "attn.value"),
    "attn.proj": ("attn.out",),
    "norm2": ("ffn_norm",),
    "mlp.fc1": ("ffn.fc1",),
    "mlp.fc2": ("ffn.fc2",),
}


def foreign_names(arch: Architecture, model: str = "model.") -> Dict[str, Tuple[str, ...]]:
    """timm's name of every parameter -> the app's; several where one of ours is theirs under each other."""
    names: Dict[str, Tuple[str, ...]] = {
        "cls_token": (f"{model}embeddings.cls_token",),
        "pos_embed": (f"{model}embeddings.position_embeddings",),
    }
    layers: Dict[str, Tuple[str, ...]] = {"patch_embed.proj": ("embeddings.patch_embeddings",)}
    for index in range(arch.depth):
        inner = {ours: tuple(f"encoder.layer.{index}.{part}" for part in parts) for ours, parts in BLOCK.items()}
        layers.update({f"blocks.{index}.{ours}": parts for ours, parts in inner.items()})
    layers["norm"] = ("encoder.encoder_norm",)
    if arch.representation_size:
        layers["pre_logits.fc"] = ("representation.representation_layer",)
    layers["head"] = ("head",)
    for kind in ("weight", "bias"):
        names.update(
            {f"{ours}.{kind}": tuple(f"{model}{part}.{kind}" for part in theirs) for ours, theirs in layers.items()}
        )
    return names


def open_app(source: str, path: Path) -> SavedModel:
    """The app's pretraining model. Its epsilon is 1e-6, its pixels have mean and deviation 0.5, always.

    Raises UserError where the file is damaged or not one of the app's, naming the key.
    """
    foreign = read_bins([path])
    model = "model." if any(name.startswith("model.") for name in foreign.shapes) else ""
    arch = _architecture(source, foreign.shapes, model)
    recipes = {name: Recipe(parts) for name, parts in foreign_names(arch, model).items()}
    note = f"{arch.num_heads} heads, as every model of the app has one for {HEAD_WIDTH} features"
    notes = (note,) if arch.num_heads else ()
    return SavedModel(source, "PopTorch app", ModelCard(arch), translate(source, foreign, recipes), notes)


def _architecture(source: str, shapes: Mapping[str, Tuple[int, ...]], model: str) -> Architecture:
    try:
        width, channels, rows, columns = shapes[f"{model}embeddings.patch_embeddings.weight"]
        num_patches = shapes[f"{model}embeddings.position_embeddings"][1] - 1
        mlp_dim = shapes[f"{model}encoder.layer.0.ffn.fc1.weight"][0]
        num_labels = shapes[f"{model}head.bias"][0]
    except KeyError as error:
        raise UserError(
            f"{source} has no config.json, and is no checkpoint of the PopTorch app either: it lacks {error.args[0]}."
        ) from error
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{source} has tensors of shapes that no ViT has ({error}).\n       Use another one."
        ) from error
    side = math.isqrt(max(0, num_patches))
    layers = {name.split("encoder.layer.")[1].split(".")[0] for name in shapes if "encoder.layer." in name}
    return Architecture(
        image_size=(side * rows, side * columns),
        patch_size=(rows, columns),
        num_channels=channels,
        embed_dim=width,
        depth=len(layers),
        num_heads=width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0,
        mlp_dim=mlp_dim,
        num_labels=num_labels,
        representation_size=shapes.get(f"{model}representation.representation_layer.bias", (None,))[0],
        layer_norm_eps=1e-6,
    )


def write_app(folder: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> List[str]:
    """A folder as the app's pretrain.py saves it; gives notes. Raises UserError for a model that the app does not know."""
    arch, tensors, notes = plain_form("the PopTorch app", card.arch, tensors)
    if arch.distillation != "none" or not arch.num_labels:
        raise UserError("the PopTorch app has neither a distillation token nor a model without a head.")
    if arch.layer_norm_eps != 1e-6:
        raise UserError(
            f"the PopTorch app computes LayerNorm with epsilon 1e-06, this model with {arch.layer_norm_eps}."
        )
    write_bin(folder / FILE, split_up(tensors, foreign_names(arch)))
    return notes
