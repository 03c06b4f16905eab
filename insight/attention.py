"""Attention rollout: how much of each patch reaches the class token through all blocks (arXiv 2005.00928, section 3)."""

from __future__ import annotations

from typing import Iterable, Iterator

import torch
from torch import Tensor

from models.vit import Block, VisionTransformer


@torch.inference_mode()
def patch_attention(model: VisionTransformer, views: Tensor) -> Tensor:
    """uint8 images [B, C, H, W] to each patch's share of the class token, float32 [B, rows, columns] on the CPU.

    The shares of all patches and those of the class (and distillation) token sum to 1. The model's answers are not touched.
    """
    (height, width), (rows, columns) = model.arch.image_size, model.arch.patch_size
    device = next(model.parameters()).device
    joint = rollout(attention_of_blocks(model, views.to(device)))  # [B, N, N]
    return joint[:, 0, model.arch.num_prefix_tokens :].unflatten(1, (height // rows, width // columns)).cpu()


def attention_of_blocks(model: VisionTransformer, views: Tensor) -> Iterator[Tensor]:
    """Each block's attention in order, [B, H, N, N]: computed beside the forward pass, which fuses it away."""
    tokens = model.embed(views)
    for block in model.blocks.values():
        assert isinstance(block, Block)
        yield block.attn.weights(block.norm1(tokens))
        tokens = block(tokens)  # after the last block, the class token alone


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
