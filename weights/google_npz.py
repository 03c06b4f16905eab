"""Google's `.npz` checkpoints of ViT and AugReg, in the layout of github.com/google-research/vision_transformer (Flax)."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

import torch
from torch import Tensor

from errors import UserError
from models.architecture import Architecture
from weights.card import ModelCard
from weights.saved_model import SavedModel, TensorsInMemory
from weights.translation import Recipe, translate

OPTIMIZER = "opt/"  # some files hold a whole training state, the model under opt/target/
TARGET = "opt/target/"
LAYER_NORM_EPS = 1e-6  # Flax's, which the published code leaves as it is


# What damaged or hostile archives raise: MemoryError for arrays that say they are larger than the memory.
DAMAGES = (
    *(OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)


def open_npz(source: str, path: Path) -> SavedModel:
    """Heads are in the shapes. Raises UserError for a file that is damaged or no ViT, naming the key."""
    arrays = _read(path)
    prefix = TARGET if any(name.startswith(TARGET) for name in arrays) else ""
    arrays = {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
    foreign = TensorsInMemory(arrays)
    arch = _architecture(source, foreign.shapes)
    weights = translate(source, foreign, _recipes(arch))
    # The published evaluation resizes a picture to the model's size, whatever its shape.
    return SavedModel(source, "Google npz", ModelCard(arch, eval_crop=1.0, squash=True), weights)


def _read(path: Path) -> Dict[str, Tensor]:
    """All arrays as tensors. Object arrays, which are pickles, are refused."""
    import numpy as np

    name = ""
    try:
        with np.load(str(path), allow_pickle=False) as file:
            tensors = {}
            for name in file.files:
                if name.startswith(OPTIMIZER) and not name.startswith(TARGET):
                    continue
                tensors[name] = torch.from_numpy(file[name])
            return tensors
    except DAMAGES as error:
        where = f" at {name}" if name else ""
        reason = (
            "it holds pickled objects, which are not read" if "allow_pickle" in str(error) else str(error).rstrip(".")
        )
        raise UserError(f"{path} cannot be read as npz{where}: {reason}.\n       Use another checkpoint.") from error


def _architecture(source: str, shapes: Mapping[str, Tuple[int, ...]]) -> Architecture:
    first = "Transformer/encoderblock_0/"
    try:
        rows, columns, channels, width = shapes["embedding/kernel"]
        num_patches = shapes["Transformer/posembed_input/pos_embedding"][1] - 1
        num_heads = shapes[f"{first}MultiHeadDotProductAttention_1/query/kernel"][1]
        mlp_dim = shapes[f"{first}MlpBlock_3/Dense_0/kernel"][1]
    except KeyError as error:
        raise UserError(f"{source} is not a ViT in Google's layout: it lacks {error.args[0]}.") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{source} has arrays of shapes that no ViT has ({error}).\n       Use another one.") from error
    side = math.isqrt(max(0, num_patches))
    if side * side != num_patches:
        raise UserError(
            f"{source}: Transformer/posembed_input/pos_embedding has {num_patches} patches, which is no square."
        )
    blocks = {name.split("/")[1] for name in shapes if name.startswith("Transformer/encoderblock_")}
    return Architecture(
        image_size=(side * rows, side * columns),
        patch_size=(rows, columns),
        num_channels=channels,
        embed_dim=width,
        depth=len(blocks),
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        num_labels=shapes.get("head/bias", (0,))[0],
        representation_size=shapes.get("pre_logits/bias", (None,))[0],
        layer_norm_eps=LAYER_NORM_EPS,
    )


def _recipes(arch: Architecture) -> Dict[str, Recipe]:
    recipes = {
        "cls_token": Recipe(("cls",)),
        "pos_embed": Recipe(("Transformer/posembed_input/pos_embedding",)),
        "patch_embed.proj.weight": Recipe(
            ("embedding/kernel",), lambda kernel: kernel.permute(3, 2, 0, 1).contiguous()
        ),
        "patch_embed.proj.bias": Recipe(("embedding/bias",)),
        **_norm("norm", "Transformer/encoder_norm"),
    }
    for index in range(arch.depth):
        recipes.update(_block(f"blocks.{index}.", f"Transformer/encoderblock_{index}/"))
    if arch.representation_size:
        recipes.update(_dense("pre_logits.fc", "pre_logits"))
    if arch.num_labels:
        recipes.update(_dense("head", "head"))
    return recipes


def _block(ours: str, theirs: str) -> Dict[str, Recipe]:
    attention = f"{theirs}MultiHeadDotProductAttention_1/"
    parts = [f"{attention}{part}/" for part in ("query", "key", "value")]
    return {
        **_norm(f"{ours}norm1", f"{theirs}LayerNorm_0"),
        f"{ours}attn.qkv.weight": Recipe(tuple(f"{part}kernel" for part in parts), _stacked_kernels),
        f"{ours}attn.qkv.bias": Recipe(tuple(f"{part}bias" for part in parts), _stacked_biases),
        f"{ours}attn.proj.weight": Recipe((f"{attention}out/kernel",), _output_kernel),
        f"{ours}attn.proj.bias": Recipe((f"{attention}out/bias",)),
        **_norm(f"{ours}norm2", f"{theirs}LayerNorm_2"),
        **_dense(f"{ours}mlp.fc1", f"{theirs}MlpBlock_3/Dense_0"),
        **_dense(f"{ours}mlp.fc2", f"{theirs}MlpBlock_3/Dense_1"),
    }


def _norm(ours: str, theirs: str) -> Dict[str, Recipe]:
    return {f"{ours}.weight": Recipe((f"{theirs}/scale",)), f"{ours}.bias": Recipe((f"{theirs}/bias",))}


def _dense(ours: str, theirs: str) -> Dict[str, Recipe]:
    return {
        f"{ours}.weight": Recipe((f"{theirs}/kernel",), lambda kernel: kernel.t().contiguous()),
        f"{ours}.bias": Recipe((f"{theirs}/bias",)),
    }


def _stacked_kernels(*kernels: Tensor) -> Tensor:
    """Query, key, value [D, H, D / H] -> [3 * D, D]"""
    return torch.cat([kernel.flatten(1).t() for kernel in kernels])


def _stacked_biases(*biases: Any) -> Tensor:
    """Query, key, value [H, D / H] -> [3 * D]"""
    return torch.cat([bias.flatten() for bias in biases])


def _output_kernel(kernel: Tensor) -> Tensor:
    """[H, D / H, D] -> [D, D]"""
    return kernel.flatten(0, 1).t().contiguous()
