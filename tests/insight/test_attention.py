"""Attention rollout against the formula of arXiv 2005.00928 in numpy, from the weights alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
import torch
from torch import Tensor

from insight.attention import attention_of_blocks, patch_attention, rollout
from models.architecture import Architecture
from models.vit import build_model
from tests.prediction.models import TINY, predictor_of, save_model

Arrays = Dict[str, np.ndarray]


def random_views(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def layer_norm(x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + TINY.layer_norm_eps)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def numpy_attentions(weights: Arrays, view: np.ndarray, arch: Architecture) -> List[np.ndarray]:
    """[H, N, N] of every block for one picture [C, H, W], all tokens computed to the end, in float64."""
    pixels = view / 127.5 - 1.0
    patches = [pixels[:, y : y + 4, x : x + 4].ravel() for y in range(0, 16, 4) for x in range(0, 16, 4)]
    kernel = weights["patch_embed.proj.weight"].reshape(arch.embed_dim, -1)
    tokens = np.stack(patches) @ kernel.T + weights["patch_embed.proj.bias"]
    prefix = [weights[name][0] for name in ("cls_token", "reg_token") if name in weights]
    tokens = np.concatenate([*prefix, tokens]) + weights["pos_embed"][0]
    found, width = [], arch.embed_dim // arch.num_heads
    for index in range(arch.depth):
        block = f"blocks.{index}"
        query, key, value = np.split(
            linear(layer_norm(tokens, weights, f"{block}.norm1"), weights, f"{block}.attn.qkv"), 3, -1
        )
        heads, outputs = [], []
        for head in range(arch.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(width))
            heads.append(scores / scores.sum(-1, keepdims=True))
            outputs.append(heads[-1] @ value[:, part])
        found.append(np.stack(heads))
        tokens = tokens + linear(np.concatenate(outputs, -1), weights, f"{block}.attn.proj")
        hidden = linear(layer_norm(tokens, weights, f"{block}.norm2"), weights, f"{block}.mlp.fc1")
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
        tokens = tokens + linear(gelu, weights, f"{block}.mlp.fc2")
    return found


def numpy_rollout(attentions: List[np.ndarray]) -> np.ndarray:
    joint = np.eye(attentions[0].shape[-1])
    for heads in attentions:
        joint = (0.5 * heads.mean(0) + 0.5 * np.eye(len(joint))) @ joint
    return joint


def test_attention_of_all_blocks_is_what_the_weights_say(tmp_path: Path) -> None:
    model = predictor_of(save_model(tmp_path / "step", scale=0.3)).model
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    views = random_views()
    with torch.inference_mode():
        ours = [attention.numpy() for attention in attention_of_blocks(model, views)]
    maps = patch_attention(model, views)
    assert len(ours) == 3
    for number, view in enumerate(views.numpy()):
        theirs = numpy_attentions(weights, view.astype(np.float64), TINY)
        for mine, other in zip(ours, theirs):
            np.testing.assert_allclose(mine[number], other, atol=1e-5, rtol=1e-5)  # float32 beside float64
        wanted = numpy_rollout(theirs)[0, 1:].reshape(4, 4)
        np.testing.assert_allclose(maps[number].numpy(), wanted, atol=1e-5)


def test_rows_of_a_rollout_sum_to_1_and_nothing_is_negative() -> None:
    attentions = [torch.randn(2, 4, 5, 5).softmax(-1) for _ in range(3)]
    joint = rollout(attentions)
    assert joint.shape == (2, 5, 5)
    assert joint.min() >= 0
    torch.testing.assert_close(joint.sum(-1), torch.ones(2, 5))


def test_of_even_attention_half_stays_with_each_token_in_each_block() -> None:
    even = torch.full((1, 2, 4, 4), 0.25)
    joint = rollout([even, even])[0]
    # Once: 1/2 + 1/8 = 5/8 on the diagonal, 1/8 beside it. Twice: the square of that matrix.
    torch.testing.assert_close(joint.diagonal(), torch.full((4,), 25 / 64 + 3 / 64))
    torch.testing.assert_close(joint[0, 1], torch.tensor(10 / 64 + 2 / 64))


def test_later_blocks_stand_on_the_left() -> None:
    to_first, to_last = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3)
    to_first[..., 0] = 1.0
    to_last[..., 2] = 1.0
    # Token 0 takes half of token 2 in the second block, of which half is token 0 after the first.
    torch.testing.assert_close(rollout([to_first, to_last])[0, 0], torch.tensor([0.75, 0.0, 0.25]))


@pytest.mark.parametrize("fused", [True, False])
def test_answers_are_the_same_after_attention_was_asked_for(tmp_path: Path, fused: bool) -> None:
    predictor = predictor_of(save_model(tmp_path / "step", replace(TINY, fused_attention=fused)))
    views = random_views()
    before = predictor.predict(views)
    patch_attention(predictor.model, views)
    assert torch.equal(predictor.predict(views), before)


@pytest.mark.parametrize("distillation", ["token", "heads"])
def test_a_distillation_token_is_no_patch(distillation: str) -> None:
    model = build_model(replace(TINY, distillation=distillation), seed=0).eval()
    shares = patch_attention(model, torch.zeros(2, 3, *TINY.image_size, dtype=torch.uint8))
    rows, columns = TINY.image_size[0] // TINY.patch_size[0], TINY.image_size[1] // TINY.patch_size[1]
    assert shares.shape == (2, rows, columns)
    assert bool((shares.sum(dim=(1, 2)) < 1.0).all())


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        ({"num_register_tokens": 2}, 3),
        ({"global_pool": "avg", "class_token": False}, 0),
        ({"global_pool": "avg", "num_register_tokens": 1}, 2),
    ],
)
def test_what_is_shown_is_what_the_head_reads(tmp_path: Path, keys: Dict[str, object], prefix: int) -> None:
    arch = replace(TINY, **keys)
    model = predictor_of(save_model(tmp_path / "step", arch, scale=0.3)).model
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    views = random_views()
    maps = patch_attention(model, views)
    for view, shown in zip(views.numpy(), maps):
        joint = numpy_rollout(numpy_attentions(weights, view.astype(np.float64), arch))
        read = (
            joint[prefix:].mean(0) if arch.global_pool == "avg" else joint[0]
        )  # the mean of patches is linear in their rows
        np.testing.assert_allclose(shown.numpy(), read[prefix:].reshape(4, 4), atol=1e-5)
