"""A model as one that the ViT paper's form can hold: what is newer is worked into its weights, or refused.

Exact: layer scale goes into the layers before it, positions that the class token lacks become zeros, sines and cosines are
positions like others. The mean of the patches, registers and a missing class token cannot be written so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, Mapping, Tuple

import torch
from torch import Tensor

from errors import UserError
from models.architecture import Architecture

SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}


def plain_form(
    where: str, arch: Architecture, tensors: Mapping[str, Tensor]
) -> Tuple[Architecture, Dict[str, Tensor], List[str]]:
    """The same model with a class token, positions for all tokens and no layer scale, and notes on what was changed.

    `where`: who has room for nothing else. Raises UserError for what has no such form.
    """
    _check(where, arch)
    plain, notes = dict(tensors), []
    if arch.layer_scale is not None:
        for name in [name for name in plain if name.endswith(".gamma")]:
            _fold(plain, name)
        notes.append(f"{where} has no layer scale: it is worked into the layers before it, the logits are the same")
    if arch.num_prefix_tokens and not arch.prefix_positions:
        patches = plain["pos_embed"]
        zeros = patches.new_zeros(1, arch.num_prefix_tokens, arch.embed_dim)
        plain["pos_embed"] = torch.cat([zeros, patches], dim=1)
        notes.append(f"{where} gives the class token a position, too: it is zero")
    return replace(arch, layer_scale=None, prefix_positions=True), plain, notes


def _check(where: str, arch: Architecture) -> None:
    lacking = [
        (arch.global_pool != "token", "the head reads the mean of the patches (global_pool = avg)"),
        (not arch.class_token, "there is no class token"),
        (arch.num_register_tokens > 0, f"there are {arch.num_register_tokens} register tokens"),
    ]
    for is_so, what in lacking:
        if is_so:
            raise UserError(
                f"{where} has no place for this model: {what}.\n       Write another format, e.g. --to timm."
            )


def _fold(tensors: Dict[str, Tensor], name: str) -> None:
    """Works a factor for each channel into the layer before it."""
    block, scale = name[: -len("ls1.gamma")], name[-len("ls1.gamma") :]
    gamma = tensors.pop(name)
    for kind in ("weight", "bias"):
        layer = f"{block}{SCALED[scale]}.{kind}"
        factor = gamma.double().view(-1, *[1] * (tensors[layer].dim() - 1))
        tensors[layer] = (tensors[layer].double() * factor).to(tensors[layer].dtype)
