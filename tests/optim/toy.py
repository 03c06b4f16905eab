"""A toy model whose gradients are known in advance, driven through weight updates as a runtime does; and 16-bit numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np
import torch
from torch import Tensor, nn

Arrays = Dict[str, np.ndarray]

# No two shapes alike, so that tensors can be told apart by them; matrices that are high, wide, and three in one.
SHAPES: Dict[str, Tuple[int, ...]] = {
    "pos_embed": (1, 5, 4),
    "blocks.0.norm1.bias": (7,),
    "blocks.0.attn.qkv.weight": (12, 4),
    "blocks.0.mlp.fc1.weight": (8, 3),
    "blocks.3.mlp.fc2.weight": (4, 9),
    "head.bias": (3,),
}


def drawn(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Arrays:
    """Normal numbers for every parameter, each of which `dtype` can hold."""
    generator = np.random.default_rng(seed)
    values = {name: scale * generator.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: torch.tensor(value).to(dtype).double().numpy() for name, value in values.items()}


def toy_model(weights: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> nn.Module:
    """A module with these parameters, and nothing it computes."""
    model = nn.Module()
    for name, value in weights.items():
        *path, leaf = name.split(".")
        module = model
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, nn.Parameter(torch.as_tensor(value).to(dtype, copy=True)))
    return model


def micro_batch(update: Any, gradients: Mapping[str, np.ndarray]) -> None:
    """The backward pass of one micro-batch whose mean loss has these gradients, cast once to the parameters' type."""
    loss = sum((p.double() * torch.tensor(gradients[name])).sum() for name, p in update.parameters.items())
    (loss * update.seed).backward()
    update.collect()


def weight_update(update: Any, number: int, rate: float, micro_batches: List[Arrays]) -> None:
    """One weight update, as a runtime makes it."""
    update.begin(number)
    for gradients in micro_batches:
        micro_batch(update, gradients)
    update.apply(rate)


def weights_of(*updates: Any) -> Dict[str, Tensor]:
    """Copies of the weights, by parameter name."""
    return {name: p.detach().clone() for update in updates for name, p in update.parameters.items()}


@lru_cache(maxsize=None)
def numbers_of(dtype: torch.dtype) -> np.ndarray:
    """All numbers of a 16-bit type in ascending order, infinities included."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).double().numpy()
    return np.unique(numbers[~np.isnan(numbers)])


def neighbours(values: np.ndarray, dtype: torch.dtype) -> Tuple[np.ndarray, np.ndarray]:
    """The largest numbers of a 16-bit type that are not above the values, and the smallest that are not below."""
    numbers = numbers_of(dtype)
    above = numbers[np.searchsorted(numbers, values, side="left")]
    return numbers[np.searchsorted(numbers, values, side="right") - 1], above
