"""Random-weight models of other libraries, saved as those libraries save them, and their logits on the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

import dataset.transforms.torchvision_operators  # noqa: F401  # isort: skip  (both import torchvision)
import timm
import transformers

from models.vit import VisionTransformer
from weights.opening import open_model
from weights.whole_model import build_whole, with_heads


class Sizes(NamedTuple):
    """Of a ViT: arXiv 2010.11929 and 2012.12877, table 1 of each."""

    width: int
    heads: int
    depth: int = 12
    image: int = 224
    patch: int = 16
    classes: int = 10

    @property
    def mlp(self) -> int:
        return 4 * self.width


TOY = Sizes(width=24, heads=3, depth=2, image=32, patch=8)
PUBLISHED = {
    **{f"Ti/{patch}": Sizes(192, 3, patch=patch) for patch in (16, 32)},
    **{f"S/{patch}": Sizes(384, 6, patch=patch) for patch in (16, 32)},
    **{f"B/{patch}": Sizes(768, 12, patch=patch) for patch in (16, 32)},
}


def pixels(sizes: Sizes, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, sizes.image, sizes.image, generator=generator)


def shaken(model: nn.Module, seed: int = 1) -> Any:
    """The model with weights that can tell two computations apart: libraries start with zeros, ones and tiny numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return model.eval()


def hugging_face_config(sizes: Sizes, kind: Any = transformers.ViTConfig, **changes: Any) -> Any:
    return kind(
        **{
            "hidden_size": sizes.width,
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.depth,
            "intermediate_size": sizes.mlp,
            "image_size": sizes.image,
            "patch_size": sizes.patch,
            "num_labels": sizes.classes,
            **changes,
        }
    )


def hugging_face(sizes: Sizes, **changes: Any) -> Any:
    return shaken(transformers.ViTForImageClassification(hugging_face_config(sizes, **changes)))


def deit(sizes: Sizes, with_teacher: bool, **changes: Any) -> Any:
    kind = (
        transformers.DeiTForImageClassificationWithTeacher if with_teacher else transformers.DeiTForImageClassification
    )
    return shaken(kind(hugging_face_config(sizes, transformers.DeiTConfig, **changes)))


def timm_model(sizes: Sizes, name: str = "vit_base_patch16_224", **changes: Any) -> Any:
    arguments = {
        "img_size": sizes.image,
        "patch_size": sizes.patch,
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.heads,
        "num_classes": sizes.classes,
    }
    model = shaken(timm.create_model(name, **{**arguments, **changes}))
    model.made_with = {**arguments, **changes}
    return model


def save_timm(model: nn.Module, folder: Path, config: Optional[Dict[str, Any]] = None) -> None:
    """A folder as timm writes it. Up to 1.0.30, the last for Python 3.8, it has to be told how the model was made."""
    from timm.models import save_for_hf

    is_told = tuple(map(int, timm.__version__.split(".")[:3])) <= (1, 0, 30)
    save_for_hf(model, folder, config, model.made_with if is_told else None, safe_serialization=True)


def ours(path: Path, num_heads: int = 0) -> VisionTransformer:
    """A checkpoint of any format as a model of this project."""
    saved = with_heads(open_model(str(path)), num_heads)
    return build_whole(saved.card.arch, saved.weights.read(saved.weights.shapes))


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, sizes: Sizes) -> float:
    """Largest difference of two models' logits on the same random pixels; they must not be all alike."""
    images = pixels(sizes)
    first, second = plain(one(images)), plain(other(images))
    assert first.shape == second.shape
    assert first.std() > 0.01
    return float((first - second).abs().max())


def plain(output: Any) -> Tensor:
    """Logits, or pooled features, of whatever a library's model gives."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output.pooler_output


# Google's published layout, written from nothing but its description (names and shapes of its Flax parameters).


def google_arrays(sizes: Sizes, pre_logits: int = 0, seed: int = 3) -> Dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    width, heads, each = sizes.width, sizes.heads, sizes.width // sizes.heads
    head_input = pre_logits or width
    shapes: Dict[str, Tuple[int, ...]] = {
        "cls": (1, 1, width),
        "embedding/kernel": (sizes.patch, sizes.patch, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, (sizes.image // sizes.patch) ** 2 + 1, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (head_input, sizes.classes),
        "head/bias": (sizes.classes,),
    }
    if pre_logits:
        shapes.update({"pre_logits/kernel": (width, pre_logits), "pre_logits/bias": (pre_logits,)})
    for index in range(sizes.depth):
        block = f"Transformer/encoderblock_{index}/"
        for part in ("query", "key", "value"):
            shapes[f"{block}MultiHeadDotProductAttention_1/{part}/kernel"] = (width, heads, each)
            shapes[f"{block}MultiHeadDotProductAttention_1/{part}/bias"] = (heads, each)
        shapes[f"{block}MultiHeadDotProductAttention_1/out/kernel"] = (heads, each, width)
        shapes[f"{block}MultiHeadDotProductAttention_1/out/bias"] = (width,)
        for norm in (0, 2):
            shapes.update({f"{block}LayerNorm_{norm}/{kind}": (width,) for kind in ("scale", "bias")})
        shapes.update(
            {f"{block}MlpBlock_3/Dense_0/kernel": (width, sizes.mlp), f"{block}MlpBlock_3/Dense_0/bias": (sizes.mlp,)}
        )
        shapes.update(
            {f"{block}MlpBlock_3/Dense_1/kernel": (sizes.mlp, width), f"{block}MlpBlock_3/Dense_1/bias": (width,)}
        )
    around = {name: 1.0 if name.endswith("/scale") else 0.0 for name in shapes}
    return {
        name: (around[name] + 0.05 * draw.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()
    }


class FlaxViT(nn.Module):
    """The published computation on the published arrays, step by step (einsums over the kernels' own axes)."""

    def __init__(self, arrays: Dict[str, np.ndarray]) -> None:
        super().__init__()
        self.arrays = {name: torch.from_numpy(value) for name, value in arrays.items()}

    def forward(self, images: Tensor) -> Tensor:
        arrays = self.arrays
        patch = arrays["embedding/kernel"].shape[0]
        grid = images.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, rows, columns, h, w]
        x = torch.einsum("bcijhw,hwcd->bijd", grid, arrays["embedding/kernel"]).flatten(1, 2) + arrays["embedding/bias"]
        x = torch.cat([arrays["cls"].expand(len(x), -1, -1), x], 1) + arrays["Transformer/posembed_input/pos_embedding"]
        depth = len({name.split("/")[1] for name in arrays if "encoderblock_" in name})
        for index in range(depth):
            x = self._block(x, f"Transformer/encoderblock_{index}/")
        x = self._norm(x, "Transformer/encoder_norm")[:, 0]
        if "pre_logits/kernel" in arrays:
            x = torch.tanh(self._dense(x, "pre_logits"))
        return self._dense(x, "head")

    def _block(self, x: Tensor, block: str) -> Tensor:
        attention = f"{block}MultiHeadDotProductAttention_1/"
        y = self._norm(x, f"{block}LayerNorm_0")
        query, key, value = (
            torch.einsum("bnd,dhe->bnhe", y, self.arrays[f"{attention}{part}/kernel"])
            + self.arrays[f"{attention}{part}/bias"]
            for part in ("query", "key", "value")
        )
        weights = torch.einsum("bqhe,bkhe->bhqk", query / query.shape[-1] ** 0.5, key).softmax(-1)
        context = torch.einsum("bhqk,bkhe->bqhe", weights, value)
        out = torch.einsum("bqhe,hed->bqd", context, self.arrays[f"{attention}out/kernel"])
        x = x + out + self.arrays[f"{attention}out/bias"]
        y = self._dense(self._norm(x, f"{block}LayerNorm_2"), f"{block}MlpBlock_3/Dense_0")
        return x + self._dense(nn.functional.gelu(y), f"{block}MlpBlock_3/Dense_1")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-6).sqrt() * self.arrays[f"{name}/scale"] + self.arrays[f"{name}/bias"]

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self.arrays[f"{name}/kernel"] + self.arrays[f"{name}/bias"]


class AppViT(nn.Module):
    """The PopTorch app's pretraining model: its parameter names, and what its documentation says they compute."""

    def __init__(self, sizes: Sizes, representation: int = 0) -> None:
        super().__init__()
        width, tokens = sizes.width, (sizes.image // sizes.patch) ** 2 + 1
        model = nn.Module()
        model.embeddings = nn.Module()
        model.embeddings.patch_embeddings = nn.Conv2d(3, width, sizes.patch, sizes.patch)
        model.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, tokens, width))
        model.embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        model.encoder = nn.Module()
        model.encoder.layer = nn.ModuleList(self._layer(width, sizes.mlp) for _ in range(sizes.depth))
        model.encoder.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        if representation:
            model.representation = nn.Module()
            model.representation.representation_layer = nn.Linear(width, representation)
        model.head = nn.Linear(representation or width, sizes.classes)
        self.model, self.heads = model, sizes.heads

    @staticmethod
    def _layer(width: int, mlp: int) -> nn.Module:
        layer = nn.Module()
        layer.attention_norm, layer.ffn_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        layer.attn, layer.ffn = nn.Module(), nn.Module()
        for part in ("query", "key", "value", "out"):
            setattr(layer.attn, part, nn.Linear(width, width))
        layer.ffn.fc1, layer.ffn.fc2 = nn.Linear(width, mlp), nn.Linear(mlp, width)
        return layer

    def forward(self, images: Tensor) -> Tensor:
        embeddings, encoder = self.model.embeddings, self.model.encoder
        x = embeddings.patch_embeddings(images).flatten(2).transpose(1, 2)
        x = torch.cat([embeddings.cls_token.expand(len(x), -1, -1), x], 1) + embeddings.position_embeddings
        for layer in encoder.layer:
            x = x + self._attention(layer.attn, layer.attention_norm(x))
            x = x + layer.ffn.fc2(nn.functional.gelu(layer.ffn.fc1(layer.ffn_norm(x))))
        x = encoder.encoder_norm(x)[:, 0]
        if hasattr(self.model, "representation"):
            x = torch.tanh(self.model.representation.representation_layer(x))
        return self.model.head(x)

    def _attention(self, attn: nn.Module, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (attn.query, attn.key, attn.value)
        )
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return attn.out((weights @ value).transpose(1, 2).flatten(2))
