"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), written so that a stage is a view of it.

Shapes: B batch, C channels, N tokens (class and distillation token and registers, if any, then patches), Q tokens that are
computed, D width, H heads, K labels.
Parameter names and shapes are timm's. Which device computes which units is the business of `stages.py` and the runtimes.
"""

from __future__ import annotations

from typing import Callable, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.architecture import Architecture
from models.freezing import is_trained
from models.initialization import initialize
from models.native.functions import FewQueries, NormedAttention, NormedMlp
from models.native.kernels import library
from models.products import (
    Dropout,
    LayerNorm,
    LayerScale,
    Linear,
    as_autocast_now,
    autocast,
    in_own_type,
    kernels_take,
    linear,
    multiplies,
    type_of_products,
    with_rows_enough,
)
from models.stages import Stage, plan_stages
from seeding import derive_seed


def normalize_pixels(images: Tensor, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> Tensor:
    """uint8 pixels [B, C, H, W] to float32, (pixel / 255 - mean) / std, with one mean and deviation or one a channel.

    Floats pass unchanged.
    """
    if images.dtype != torch.uint8:
        return images
    pixels = images.float()
    if len(mean) == len(std) == 1:
        return pixels.div_(255.0 * std[0]).sub_(mean[0] / std[0])
    parts = []
    for channel, part in enumerate(
        pixels.split(1, dim=1)
    ):  # views are not written to: compilers of graphs may not follow
        own_mean, own_std = mean[channel % len(mean)], std[channel % len(std)]
        parts.append(part.div(255.0 * own_std).sub_(own_mean / own_std))
    return torch.cat(parts, dim=1)


def mix_images(images: Tensor, mix: Tensor) -> Tensor:
    """Mixes each image of a micro-batch with its predecessor (the first with the last).

    `mix` [B, 1]: the weight of its own pixels (mixup, arXiv 1710.09412). [B, 5]: that, and the rectangle in which all is the
    predecessor's (CutMix, arXiv 1905.04899): top, bottom, left, right in pixels, bottom and right exclusive.
    """
    others = images.roll(1, 0)
    weight, *edges = mix.to(images.dtype).view(*mix.shape, 1, 1, 1).unbind(1)
    mixed = weight * images + (1.0 - weight) * others
    if not edges:
        return mixed
    top, bottom, left, right = edges
    rows = torch.arange(images.shape[2], device=images.device).view(-1, 1)
    columns = torch.arange(images.shape[3], device=images.device)
    pasted = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # [B, 1, H, W]
    return torch.where(pasted, others, mixed)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): leaves a whole branch out, sample by sample, with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty((x.shape[0], 1, 1), dtype=x.dtype, device=x.device)
        mask = in_own_type(lambda mask: mask.bernoulli_(keep), mask)
        return x * mask.div_(keep)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token (arXiv 2010.11929, section 3.1).

    Input [B, C, H, W], pixels in [-1, 1]. Output [B, (H / patch height) * (W / patch width), D].
    Raises ValueError where H or W is not the size that the model was built for.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.image_size, self.patch_size = arch.image_size, arch.patch_size
        self.proj = nn.Conv2d(arch.num_channels, arch.embed_dim, kernel_size=arch.patch_size, stride=arch.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        if (height, width) != self.image_size:
            raise ValueError(f"images are {height}x{width}, the model takes {self.image_size[0]}x{self.image_size[1]}")
        rows, columns = self.patch_size
        grid = images.view(batch, channels, height // rows, rows, width // columns, columns)
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, N - 1, C * rows * columns]
        # A convolution whose stride is its kernel is one matrix product, which is faster than the convolution.
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, D]; with `num_queries` only the first Q tokens are computed: [B, Q, D].

    Fused through `scaled_dot_product_attention`, or explicit matmul and fp32 softmax, with the same result.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.num_heads = arch.num_heads
        self.fused = arch.fused_attention
        self.attention_dropout = arch.attention_dropout
        self.qkv = Linear(arch.embed_dim, 3 * arch.embed_dim)
        self.proj = Linear(arch.embed_dim, arch.embed_dim)
        self.proj_drop = Dropout(arch.dropout)
        self.native = False  # see `VisionTransformer.use_native_kernels`

    def after(self, norm: LayerNorm, x: Tensor, num_queries: Optional[int] = None) -> tuple[Tensor, Tensor]:
        """x for a skip connection, and attention of its norm."""
        if num_queries is not None or x.dtype != torch.float32 or not self._runs_natively(x):
            skip, normed = norm.beside(x)
            return skip if num_queries is None else skip[:, :num_queries], self(normed, num_queries)
        weights = (norm.weight, norm.bias, self.qkv.weight, self.qkv.bias, self.proj.weight, self.proj.bias)
        skip, out = NormedAttention.apply(x, *weights, norm.eps, self.num_heads, type_of_products(x))
        return skip, self.proj_drop(out)

    def forward(self, x: Tensor, num_queries: Optional[int] = None) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        if num_queries is None:
            query, key, value = self._heads(self.qkv(x), 3)
        else:
            width = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            queries = linear(x[:, :num_queries], weight[:width], bias[:width])
            keys_values = linear(x, weight[width:], bias[width:])
            if self._runs_natively(x):
                return self.proj_drop(self.proj(FewQueries.apply(queries, keys_values, self.num_heads)))
            (query,), (key, value) = self._heads(queries, 1), self._heads(keys_values, 2)
        if multiplies(query.dtype, query.device):
            context = self._attend(query, key, value, dropout)
        else:  # see `models.products`
            with autocast(query.device, None):
                context = self._attend(query.float(), key.float(), value.float(), dropout).to(query.dtype)
        context = context.transpose(1, 2).flatten(2)  # [B, H, Q, D / H] -> [B, Q, D]
        return self.proj_drop(self.proj(context))

    def weights(self, x: Tensor) -> Tensor:
        """What the fused path does not show: how much each token takes from each, [B, N, D] -> [B, H, N, N]; rows sum to 1."""
        query, key, _ = self._heads(self.qkv(x), 3)
        return _attention_weights(query, key)

    def _runs_natively(self, x: Tensor) -> bool:
        return self.native and not (self.training and self.attention_dropout) and kernels_take(x)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return _explicit_attention(query, key, value, dropout)

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, N, parts * D] -> `parts` tensors [B, H, N, D / H]"""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    return F.dropout(_attention_weights(query, key).to(value.dtype), dropout) @ value


def _attention_weights(query: Tensor, key: Tensor) -> Tensor:
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # [B, H, Q, N]
    return scores.float().softmax(dim=-1)


class Mlp(nn.Module):
    """Two linear layers with GELU between, token by token: [B, Q, D] -> [B, Q, D]."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.fc1 = Linear(arch.embed_dim, arch.mlp_dim)
        self.fc2 = Linear(arch.mlp_dim, arch.embed_dim)
        self.drop = Dropout(arch.dropout)
        self.native = False  # see `VisionTransformer.use_native_kernels`

    def after(self, norm: LayerNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        """x for a skip connection, and the MLP of its norm."""
        drops = self.training and self.drop.p
        if not self.native or drops or x.dtype != torch.float32 or not kernels_take(x):
            skip, normed = norm.beside(x)
            return skip, self(normed)
        weights = (norm.weight, norm.bias, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        dtype = type_of_products(x)
        skip, out = with_rows_enough(lambda rows: NormedMlp.apply(rows, *weights, norm.eps, dtype), x)
        return skip, out

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(in_own_type(F.gelu, self.fc1(x)))))


class Block(nn.Module):
    """Pre-norm encoder block, [B, N, D] -> [B, N, D].

    Where the head reads the class token alone, the last block computes no other: `num_queries` 1 gives [B, 1, D], the same
    numbers as the first token of the whole, and leaves out most of the block's work. (2, where the second token has a head;
    None, all, where the head reads the mean of the patches.)
    """

    def __init__(self, arch: Architecture, index: int) -> None:
        super().__init__()
        reads_few = index == arch.depth - 1 and arch.global_pool == "token"
        self.num_queries = arch.num_head_tokens if reads_few else None
        self.norm1 = LayerNorm(arch.embed_dim, eps=arch.layer_norm_eps)
        self.attn = Attention(arch)
        self.ls1 = nn.Identity() if arch.layer_scale is None else LayerScale(arch.embed_dim)
        self.norm2 = LayerNorm(arch.embed_dim, eps=arch.layer_norm_eps)
        self.mlp = Mlp(arch)
        self.ls2 = nn.Identity() if arch.layer_scale is None else LayerScale(arch.embed_dim)
        share = 1.0 if arch.drop_path_mode == "constant" else index / max(1, arch.depth - 1)
        self.drop_path = DropPath(arch.drop_path_rate * share)
        self.recompute_halves = arch.recompute and index in arch.recompute_mid_layers
        self.draws_random_numbers = arch.is_random

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute_halves and self.training:
            x = _recomputed(self._attend, x, self.draws_random_numbers)
            return _recomputed(self._feed_forward, x, self.draws_random_numbers)
        return self._feed_forward(self._attend(x))

    def _attend(self, x: Tensor) -> Tensor:
        skip, out = self.attn.after(self.norm1, x, self.num_queries)
        return skip + self.drop_path(self.ls1(out))

    def _feed_forward(self, x: Tensor) -> Tensor:
        skip, out = self.mlp.after(self.norm2, x)
        return skip + self.drop_path(self.ls2(out))


def _recomputed(function: Callable[[Tensor], Tensor], x: Tensor, draws_random_numbers: bool) -> Tensor:
    """`function(x)`, of which only x is kept for the backward pass: the rest is computed again (arXiv 1604.06174)."""
    return checkpoint(as_autocast_now(function), x, use_reentrant=False, preserve_rng_state=draws_random_numbers)


class PreLogits(nn.Module):
    """The representation layer of the paper's pretraining head: linear and tanh."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.fc = Linear(arch.embed_dim, arch.head_input_dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.fc(x))


class VisionTransformer(nn.Module):
    """A ViT, or the part of it that one pipeline stage owns; parameters keep their names either way.

    A stage with the embedding takes images [B, C, H, W] (uint8, or float already in [-1, 1]), others take tokens
    [B, N, D]. A stage with the head gives logits [B, K] in float32 (what the head would read, where K is 0), others give
    tokens. Logits of two heads (`arch.distillation`) are averaged, in training as well: there is no teacher here.
    """

    def __init__(self, arch: Architecture, stage: Optional[Stage] = None) -> None:
        super().__init__()
        self.arch = arch
        self.stage = stage or plan_stages([arch.depth])[0]
        if self.stage.has_embed:
            self.patch_embed = PatchEmbed(arch)
            for name, count in prefix_tokens(arch).items():
                self.register_parameter(name, nn.Parameter(torch.empty(1, count, arch.embed_dim)))
            positions = torch.empty(1, arch.num_positions, arch.embed_dim)
            self.pos_embed = nn.Parameter(positions, requires_grad=arch.pos_embed == "learned")
            self.pos_drop = Dropout(arch.dropout)
        self.blocks = nn.ModuleDict({str(index): Block(arch, index) for index in self.stage.blocks})
        if self.stage.has_head:
            norm = LayerNorm(arch.embed_dim, eps=arch.layer_norm_eps)
            self.norm: nn.Module = nn.Identity() if arch.fc_norm else norm
            self.fc_norm: nn.Module = norm if arch.fc_norm else nn.Identity()
            self.pre_logits = PreLogits(arch) if arch.representation_size else nn.Identity()
            self.head = Linear(arch.head_input_dim, arch.num_labels) if arch.num_labels else nn.Identity()
            if arch.distillation == "heads":
                self.head_dist = Linear(arch.head_input_dim, arch.num_labels) if arch.num_labels else nn.Identity()
        self.dropout_key: tuple[int, ...] = ()

    def train(self, mode: bool = True) -> VisionTransformer:
        """As torch's; units that are not trained stay as in evaluation: features without dropout and stochastic depth."""
        super().train(mode)
        for block in self.blocks.values():
            block.train(mode and is_trained(block))
        if self.stage.has_embed:
            self.pos_drop.train(mode and is_trained(self.patch_embed))
        return self

    def use_native_kernels(self) -> None:
        """Lets blocks of float32 weights on a CPU run on `models.native`, under autocast to bf16, too. Raises BuildError."""
        if any(weight.dtype != torch.float32 for weight in self.blocks.parameters()):
            return
        library()
        for block in self.blocks.values():
            for module in block.modules():
                if isinstance(module, (Attention, Mlp, LayerNorm)):
                    module.native = True

    def forward(self, x: Tensor, mix: Optional[Tensor] = None) -> Tensor:
        if self.stage.has_embed:
            self._seed_dropout("embed")
            x = self.embed(x, mix)
        for index, block in self.blocks.items():
            self._seed_dropout(f"block {index}")
            recomputes = block.training and self.arch.recompute and not block.recompute_halves
            x = _recomputed(block, x, self.arch.is_random) if recomputes else block(x)
        return self.classify(x) if self.stage.has_head else x

    def embed(self, images: Tensor, mix: Optional[Tensor] = None) -> Tensor:
        """Images [B, C, H, W] -> tokens [B, N, D]."""
        images = normalize_pixels(images, self.arch.pixel_mean, self.arch.pixel_std)
        if mix is not None:
            images = mix_images(images, mix)
        patches = self.patch_embed(images.to(self.pos_embed.dtype))
        prefix = [self._repeated(self.get_parameter(name), patches) for name in prefix_tokens(self.arch)]
        if self.arch.num_prefix_positions:
            return self.pos_drop(torch.cat([*prefix, patches], dim=1) + self.pos_embed)
        tokens = patches + self.pos_embed
        return self.pos_drop(torch.cat([*(token.to(tokens.dtype) for token in prefix), tokens], dim=1))

    @staticmethod
    def _repeated(token: Tensor, patches: Tensor) -> Tensor:
        return token.expand(patches.shape[0], -1, -1).to(patches.dtype)

    def classify(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N or Q, D] -> logits [B, K], in float32 whatever the precision of the blocks."""
        with autocast(tokens.device, None):
            if self.arch.global_pool == "avg":
                patches = tokens[:, self.arch.num_prefix_tokens :].float()
                return self.head(self.pre_logits(self.fc_norm(self.norm(patches).mean(dim=1))))
            logits = self.head(self.pre_logits(self.norm(tokens[:, 0].float())))
            if self.arch.distillation != "heads":
                return logits
            return (logits + self.head_dist(self.pre_logits(self.norm(tokens[:, 1].float())))) / 2

    def _seed_dropout(self, unit: str) -> None:
        """Makes dropout a function of (`dropout_key`, unit), so that it is the same in every split of the model."""
        if self.training and self.arch.is_random and self.dropout_key:
            torch.manual_seed(derive_seed("dropout", *self.dropout_key, unit))


def prefix_tokens(arch: Architecture) -> Dict[str, int]:
    """Parameters of the tokens before the patches, in order, and how many tokens each is."""
    counts = {
        "cls_token": int(arch.class_token),
        "dist_token": int(arch.distillation != "none"),
        "reg_token": arch.num_register_tokens,
    }
    return {name: count for name, count in counts.items() if count}


def build_model(arch: Architecture, seed: int, stage: Optional[Stage] = None) -> VisionTransformer:
    """A model, or one stage of it, with initial weights that depend on the seed and on nothing else."""
    with torch.device("meta"):
        model = VisionTransformer(arch, stage)
    for module in model.modules():  # not `to_empty`, for which torch imports sympy: half a second and more
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    initialize(model, arch, seed)
    return model
