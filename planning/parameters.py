"""Names and sizes of the parameters of each unit of a model, as `models/vit.py` makes them."""

from __future__ import annotations

from typing import Dict, Sequence

from models.architecture import Architecture

# Of a block, in Muon's care; see `optimization.py`.
MATRICES = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def parameter_sizes(arch: Architecture, units: Sequence[str]) -> Dict[str, int]:
    """Parameter name -> how many numbers it has."""
    sizes: Dict[str, int] = {}
    for unit in units:
        if unit == "embed":
            sizes.update(_embed(arch))
        elif unit == "head":
            sizes.update(_head(arch))
        else:
            index = unit[len("block ") :]
            sizes.update({f"blocks.{index}.{name}": size for name, size in _block(arch).items()})
    return sizes


def is_block_matrix(name: str) -> bool:
    return name.startswith("blocks.") and name.split(".", 2)[2] in MATRICES


def _embed(arch: Architecture) -> Dict[str, int]:
    width = arch.embed_dim
    counts = {
        "cls_token": int(arch.class_token),
        "dist_token": int(arch.distillation != "none"),
        "reg_token": arch.num_register_tokens,
        "pos_embed": arch.num_positions,
    }
    return {
        **{name: count * width for name, count in counts.items() if count},
        "patch_embed.proj.weight": arch.patch_values * width,
        "patch_embed.proj.bias": width,
    }


def _block(arch: Architecture) -> Dict[str, int]:
    width, hidden = arch.embed_dim, arch.mlp_dim
    scales = {} if arch.layer_scale is None else {"ls1.gamma": width, "ls2.gamma": width}
    return {
        **scales,
        "norm1.weight": width,
        "norm1.bias": width,
        "attn.qkv.weight": 3 * width * width,
        "attn.qkv.bias": 3 * width,
        "attn.proj.weight": width * width,
        "attn.proj.bias": width,
        "norm2.weight": width,
        "norm2.bias": width,
        "mlp.fc1.weight": hidden * width,
        "mlp.fc1.bias": hidden,
        "mlp.fc2.weight": hidden * width,
        "mlp.fc2.bias": width,
    }


def _head(arch: Architecture) -> Dict[str, int]:
    norm = "fc_norm" if arch.fc_norm else "norm"
    sizes = {f"{norm}.weight": arch.embed_dim, f"{norm}.bias": arch.embed_dim}
    if arch.representation_size:
        sizes["pre_logits.fc.weight"] = arch.embed_dim * arch.representation_size
        sizes["pre_logits.fc.bias"] = arch.representation_size
    for head in ("head", "head_dist")[: arch.num_classifiers]:
        sizes[f"{head}.weight"] = arch.head_input_dim * arch.num_labels
        sizes[f"{head}.bias"] = arch.num_labels
    return sizes
