"""Initial weights, drawn parameter by parameter from (seed, parameter name), so that every split starts from the same model.

Rules: linear layers Xavier normal with zero bias, patch embedding Kaiming normal over its outputs, learned positions,
distillation token and registers N(0, 0.02), class token zero (where it has no position N(0, 0.02), too), LayerNorm one and
zero, layer scale and the head's bias as the config says (-10 for pretraining from scratch, so that the first loss is small
where classes are many). Positions of sines and cosines are what their formula gives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.architecture import Architecture
from seeding import derive_seed


def initialize(model: nn.Module, arch: Architecture, seed: int) -> None:
    """Fills every parameter of `model` (a whole model or a stage of it) in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            initialize_parameter(name, parameter, arch, seed)


def initialize_parameter(name: str, parameter: Tensor, arch: Architecture, seed: int) -> None:
    deviation = _deviation(name, parameter, arch)
    if name == "pos_embed" and arch.pos_embed == "sincos2d":
        parameter.copy_(sincos_positions(arch))
    elif deviation:
        # Drawn on the CPU in fp32 whatever the device, for the same numbers everywhere.
        generator = torch.Generator().manual_seed(derive_seed(seed, "weights", name))
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))
    elif name in ("head.bias", "head_dist.bias"):
        parameter.fill_(arch.head_bias_init)
    elif name.endswith(".gamma"):
        assert arch.layer_scale is not None, "or there is no such parameter"
        parameter.fill_(arch.layer_scale)
    elif "norm" in name and name.endswith(".weight"):
        parameter.fill_(1.0)
    else:
        parameter.zero_()


def _deviation(name: str, parameter: Tensor, arch: Architecture) -> float:
    """Standard deviation of a parameter's normal distribution; 0 for those that start at a constant."""
    if name in ("pos_embed", "dist_token", "reg_token"):  # registers that start alike would stay alike
        return 0.02
    if (
        name == "cls_token" and not arch.prefix_positions
    ):  # of all zeros, LayerNorm's derivative is a thousand times too large
        return 0.02
    if name == "cls_token" or parameter.dim() == 1:
        return 0.0
    if name == "patch_embed.proj.weight":
        return math.sqrt(2.0 / (arch.embed_dim * arch.patch_size[0] * arch.patch_size[1]))
    fan_out, fan_in = parameter.shape
    if name.endswith(".qkv.weight"):
        fan_out //= 3  # three square matrices, stored as one
    return math.sqrt(2.0 / (fan_in + fan_out))


WAVELENGTHS = 10_000.0  # from 2 pi patches to this many times as long


def sincos_positions(arch: Architecture) -> Tensor:
    """Fixed positions, float32 [1, prefix + patches, D]: sines and cosines of column and row, zeros for the prefix.

    The formula of arXiv 2205.01580 (big_vision's `sincos2d`, after MoCo v3, arXiv 2104.02057): quarters of the width hold
    sin x, cos x, sin y, cos y at D / 4 frequencies from 1 to 1 / 10,000. (MoCo v3 itself divides by D / 4, not by D / 4 - 1.)
    """
    rows, columns = arch.grid
    quarter = arch.embed_dim // 4
    frequencies = WAVELENGTHS ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    y = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns).outer(frequencies)  # [patches, D / 4]
    x = torch.arange(columns, dtype=torch.float64).repeat(rows).outer(frequencies)
    patches = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    prefix = torch.zeros(arch.num_prefix_positions, arch.embed_dim, dtype=torch.float64)
    return torch.cat([prefix, patches]).float().unsqueeze(0)
