"""A `.safetensors` file with timm's parameter names and nothing beside it; ours carry the model's card in the file's header."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Mapping, Optional, Tuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.saved_model import SavedModel
from weights.tensor_files import open_tensor_files, write_part

CARD = "pipevit_card"  # key of the header


def open_timm_file(source: str, path: Path) -> SavedModel:
    """Sizes are read off the weights where the header does not say them.

    Raises UserError where these are not a ViT's, or are damaged.
    """
    weights = open_tensor_files([path])
    card = card_in_header(path)
    if card is None:
        card = ModelCard(architecture_of_shapes(source, weights.shapes))
    return SavedModel(source, "timm", card, weights)


def write_timm_file(path: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    write_part(path, tensors, {CARD: json.dumps(card.to_json())})


def card_in_header(path: Path) -> Optional[ModelCard]:
    """The card that this project writes into its files' headers; None in those of others. Raises UserError for a damaged one."""
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(CARD)
        return ModelCard.from_json(json.loads(text)) if text else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has a damaged header: {CARD} ({error}).\n       Use another checkpoint.") from error


def architecture_of_shapes(
    source: str, shapes: Mapping[str, Tuple[int, ...]], image_size: Optional[Tuple[int, int]] = None
) -> Architecture:
    """What the shapes of timm's parameters say: all but the number of heads, which is 0 for unknown.

    Images are taken to be square where `image_size` is not known. Pooling shows where there is no class token or an `fc_norm`;
    the initial value of layer scale does not, and is taken to be 1. Raises UserError, naming the parameter that is missing or
    of a shape that no ViT has.
    """
    has_token, has_class_token, has_fc_norm = (name in shapes for name in ("dist_token", "cls_token", "fc_norm.weight"))
    try:
        width, channels, rows, columns = shapes["patch_embed.proj.weight"]
        registers = shapes.get("reg_token", (1, 0))[1]
        num_prefix = has_class_token + has_token + registers
        num_patches, prefix_positions = _patches(shapes["pos_embed"][1], num_prefix, image_size, rows * columns)
        mlp_dim = shapes["blocks.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise UserError(f"{source} is not a ViT with timm's parameter names: it lacks {error.args[0]}.") from error
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{source} has tensors of shapes that no ViT has ({error}).\n       Use another one."
        ) from error
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    return Architecture(
        image_size=image_size or _square(num_patches, rows, columns),
        patch_size=(rows, columns),
        num_channels=channels,
        embed_dim=width,
        depth=depth,
        num_heads=0,
        mlp_dim=mlp_dim,
        num_labels=_first(shapes.get("head.bias")) or 0,
        representation_size=_first(shapes.get("pre_logits.fc.bias")),
        distillation=("heads" if "head_dist.weight" in shapes else "token") if has_token else "none",
        global_pool="token" if has_class_token and not has_fc_norm else "avg",
        fc_norm=has_fc_norm,
        class_token=has_class_token,
        num_register_tokens=registers,
        prefix_positions=prefix_positions,
        layer_scale=1.0 if "blocks.0.ls1.gamma" in shapes else None,
    )


def _patches(
    positions: int, num_prefix: int, image_size: Optional[Tuple[int, int]], patch_area: int
) -> Tuple[int, bool]:
    """Of so many positions, how many are patches', and whether the tokens before them have the rest."""
    if num_prefix == 0:
        return positions, True
    if image_size is not None:
        return (positions, False) if positions * patch_area == math.prod(image_size) else (positions - num_prefix, True)
    is_square = [math.isqrt(max(0, count)) ** 2 == count for count in (positions - num_prefix, positions)]
    return (positions, False) if is_square == [False, True] else (positions - num_prefix, True)


def _first(shape: Any) -> Optional[int]:
    return shape[0] if shape else None


def _square(num_patches: int, rows: int, columns: int) -> Tuple[int, int]:
    side = math.isqrt(max(0, num_patches) * rows * columns)
    return side // rows * rows, side // columns * columns
