"""What a model answers, as probabilities."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from models.by_core import predict_by_core
from models.products import autocast
from models.vit import VisionTransformer
from weights.card import ModelCard


@torch.inference_mode()
def probabilities(
    model: VisionTransformer, card: ModelCard, views: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 [B, C, H, W] to float32 [B, K] on the CPU, multiplied in `dtype`: see `as_probabilities`."""
    device = next(model.parameters()).device
    context = nullcontext if dtype == torch.float32 else partial(autocast, device, dtype)
    return as_probabilities(card, predict_by_core(model, views.to(device), context)).cpu()


def as_probabilities(card: ModelCard, logits: Tensor) -> Tensor:
    """Logits [B, K] to probabilities of one class among all, or of each label by itself."""
    is_each_by_itself = card.multi_label or card.arch.num_labels == 1  # one class among one would say nothing
    return logits.sigmoid() if is_each_by_itself else logits.softmax(dim=-1)
