"""Attention rollout: how much of each patch reaches what the head reads through all blocks (arXiv 2005.00928, section 3)."""

from __future__ import annotations

from typing import Iterable, Iterator

import torch
from torch import Tensor

from models.vit import Block, VisionTransformer


@torch.inference_mode()
def patch_attention(model: VisionTransformer, views: Tensor) -> Tensor:
    """uint8 images [B, C, H, W] to each patch's share of the class token, float32 [B, rows, columns] on the CPU.

    Where the head reads the mean of the patches: the share of that mean, which is the mean of the patches' rows. The shares of
    all patches and those of the class (and distillation) token and registers sum to 1. The model's answers are not touched.
    """
    device, prefix = next(model.parameters()).device, model.arch.num_prefix_tokens
    joint = rollout(attention_of_blocks(model, views.to(device)))  # [B, N, N]
    read = joint[:, prefix:].mean(dim=1) if model.arch.global_pool == "avg" else joint[:, 0]  # [B, N]
    return read[:, prefix:].unflatten(1, model.arch.grid).cpu()


def attention_of_blocks(model: VisionTransformer, views: Tensor) -> Iterator[Tensor]:
    """Each block's attention in order, [B, H, N, N]: computed beside the forward pass, which fuses it away."""
    tokens = model.embed(views)
    for block in model.blocks.values():
        assert isinstance(block, Block)
        yield block.attn.weights(block.norm1(tokens))
        tokens = block(tokens)  # after the last block, what the head reads


def rollout(attentions: Iterable[Tensor]) -> Tensor:
    """Attention of blocks [B, H, N, N] to that of all together, [B, N, N], rows of sum 1.

    Heads are averaged. Half of each token is what it was before the block: the identity stands for the residual branch.
    """
    joint = None
    for attention in attentions:
        mixed = attention.mean(dim=1)
        mixed = mixed + torch.eye(mixed.shape[-1], device=mixed.device)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        joint = mixed if joint is None else mixed @ joint
    assert joint is not None, "a model has blocks"
    return joint
