"""Initial weights, drawn parameter by parameter from (seed, parameter name), so that every split starts from the same model.

Rules: linear layers Xavier normal with zero bias, patch embedding Kaiming normal over its outputs, positions and
distillation token N(0, 0.02), class token zero, LayerNorm one and zero, and the head's bias as the config says (-10 for
pretraining from scratch, so that the first loss is small where classes are many).
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
    if deviation:
        # Drawn on the CPU in fp32 whatever the device, for the same numbers everywhere.
        generator = torch.Generator().manual_seed(derive_seed(seed, "weights", name))
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))
    elif name in ("head.bias", "head_dist.bias"):
        parameter.fill_(arch.head_bias_init)
    elif "norm" in name and name.endswith(".weight"):
        parameter.fill_(1.0)
    else:
        parameter.zero_()


def _deviation(name: str, parameter: Tensor, arch: Architecture) -> float:
    """Standard deviation of a parameter's normal distribution; 0 for those that start at a constant."""
    if name in ("pos_embed", "dist_token"):
        return 0.02
    if name == "cls_token" or parameter.dim() == 1:
        return 0.0
    if name == "patch_embed.proj.weight":
        return math.sqrt(2.0 / (arch.embed_dim * arch.patch_size[0] * arch.patch_size[1]))
    fan_out, fan_in = parameter.shape
    if name.endswith(".qkv.weight"):
        fan_out //= 3  # three square matrices, stored as one
    return math.sqrt(2.0 / (fan_in + fan_out))
