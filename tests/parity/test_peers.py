"""The model gives the numbers of timm and of Hugging Face for equal weights."""

from __future__ import annotations

import re
from typing import Dict

import pytest
import torch
from torch import Tensor

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (timm imports torchvision)
import timm
import transformers

from models.architecture import Architecture
from models.vit import VisionTransformer, build_model

TINY = Architecture(embed_dim=192, num_heads=3, mlp_dim=768, num_labels=1000)


def random_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def ours(state: Dict[str, Tensor], arch: Architecture) -> VisionTransformer:
    model = build_model(arch, seed=0)
    model.load_state_dict(state)
    return model.eval()


def from_hugging_face(state: Dict[str, Tensor], depth: int) -> Dict[str, Tensor]:
    """A ViTForImageClassification's weights under timm's names."""
    state = {re.sub(r"^vit\.", "", name): value for name, value in state.items()}
    embeddings = "embeddings."
    mapped = {
        "cls_token": state[embeddings + "cls_token"],
        "pos_embed": state[embeddings + "position_embeddings"],
        "patch_embed.proj.weight": state[embeddings + "patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state[embeddings + "patch_embeddings.projection.bias"],
    }
    for kind in ("weight", "bias"):
        mapped[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        mapped[f"head.{kind}"] = state[f"classifier.{kind}"]
        for index in range(depth):
            block = block_of(state, index)
            here = f"blocks.{index}."
            mapped[f"{here}attn.qkv.{kind}"] = torch.cat(
                [find(block, name, kind) for name in ("query", "key", "value")]
            )
            mapped[f"{here}attn.proj.{kind}"] = find(block, "proj", kind)
            mapped[f"{here}mlp.fc1.{kind}"] = find(block, "fc1", kind)
            mapped[f"{here}mlp.fc2.{kind}"] = find(block, "fc2", kind)
            mapped[f"{here}norm1.{kind}"] = block[f"layernorm_before.{kind}"]
            mapped[f"{here}norm2.{kind}"] = block[f"layernorm_after.{kind}"]
    return mapped


# What transformers 4 and 5 call the parts of a block.
HUGGING_FACE_NAMES = {
    "query": ("attention.attention.query", "attention.q_proj"),
    "key": ("attention.attention.key", "attention.k_proj"),
    "value": ("attention.attention.value", "attention.v_proj"),
    "proj": ("attention.output.dense", "attention.o_proj"),
    "fc1": ("intermediate.dense", "mlp.fc1"),
    "fc2": ("output.dense", "mlp.fc2"),
}


def block_of(state: Dict[str, Tensor], index: int) -> Dict[str, Tensor]:
    prefix = re.compile(rf"^(encoder\.layer|layers|encoder\.layers)\.{index}\.")
    return {prefix.sub("", name): value for name, value in state.items() if prefix.match(name)}


def find(block: Dict[str, Tensor], part: str, kind: str) -> Tensor:
    names = [f"{name}.{kind}" for name in HUGGING_FACE_NAMES[part] if f"{name}.{kind}" in block]
    assert names, f"{part} is not among {sorted(block)}"
    return block[names[0]]


@pytest.mark.parametrize("fused", [True, False])
def test_logits_and_gradients_equal_timm(fused: bool) -> None:
    peer = timm.create_model("vit_tiny_patch16_224").eval()
    arch = Architecture(embed_dim=192, num_heads=3, mlp_dim=768, fused_attention=fused)
    model = ours(peer.state_dict(), arch)
    images, labels = random_images(), torch.tensor([3, 14])
    logits, expected = model(images), peer(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in model.named_parameters():
        error = (parameter.grad - gradients[name]).norm() / gradients[name].norm().clamp(min=1e-4)
        assert error < 1e-4, name  # fp32 sums of 12 blocks in another order


def test_logits_equal_hugging_face() -> None:
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    config = transformers.ViTConfig(**sizes, num_labels=1000, layer_norm_eps=1e-6)
    torch.manual_seed(1)
    peer = transformers.ViTForImageClassification(config).eval()
    # Hugging Face starts with zero biases and tiny weights: numbers that can tell models apart are better.
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model = ours(from_hugging_face(peer.state_dict(), 12), TINY)
    with torch.no_grad():
        torch.testing.assert_close(model(random_images()), peer(random_images()).logits, rtol=0, atol=1e-5)


def test_another_layer_norm_epsilon_gives_other_logits() -> None:
    peer = timm.create_model("vit_tiny_patch16_224").eval()
    arch = Architecture(embed_dim=192, num_heads=3, mlp_dim=768, layer_norm_eps=1e-2)
    with torch.no_grad():
        assert (ours(peer.state_dict(), arch)(random_images()) - peer(random_images())).abs().max() > 1e-4
