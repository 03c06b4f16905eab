"""A `.safetensors` file with timm's parameter names and nothing beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Mapping, Tuple

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.saved_model import SavedModel
from weights.tensor_files import open_tensor_files


def open_timm_file(source: str, path: Path) -> SavedModel:
    """Sizes are read off the weights. Raises UserError where these are not a ViT's, or are damaged."""
    weights = open_tensor_files([path])
    return SavedModel(source, "timm", ModelCard(architecture_of_shapes(source, weights.shapes)), weights)


def architecture_of_shapes(source: str, shapes: Mapping[str, Tuple[int, ...]]) -> Architecture:
    """What the shapes of timm's parameters say: all but the number of heads, which is 0 for unknown.

    Images are taken to be square. Raises UserError, naming the parameter that is missing or of a shape that no ViT has.
    """
    try:
        width, channels, rows, columns = shapes["patch_embed.proj.weight"]
        num_patches = shapes["pos_embed"][1] - 1
        mlp_dim = shapes["blocks.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise UserError(f"{source} is not a ViT with timm's parameter names: it lacks {error.args[0]}.") from error
    side = math.isqrt(num_patches * rows * columns)
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    return Architecture(
        image_size=(side // rows * rows, side // columns * columns),
        patch_size=(rows, columns),
        num_channels=channels,
        embed_dim=width,
        depth=depth,
        num_heads=0,
        mlp_dim=mlp_dim,
        num_labels=shapes.get("head.bias", (0,))[0],
        representation_size=shapes.get("pre_logits.fc.bias", (None,))[0],
    )
