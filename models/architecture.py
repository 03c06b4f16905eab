"""The size and shape of a Vision Transformer, and what its units weigh and cost. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Tuple

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Architecture:
    """What defines a ViT (arXiv 2010.11929): sizes in pixels or features, probabilities in [0, 1]."""

    image_size: Tuple[int, int] = (224, 224)
    patch_size: Tuple[int, int] = (16, 16)
    num_channels: int = 3
    pixel_mean: Tuple[float, ...] = (0.5,)
    pixel_std: Tuple[float, ...] = (0.5,)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_labels: int = 1000
    representation_size: Optional[int] = None
    distillation: str = "none"  # DeiT's second token (arXiv 2012.12877): none, token, or heads (a head of its own, too)
    global_pool: str = (
        "token"  # what the head reads: the class token, or "avg", the mean of the patches (arXiv 2205.01580)
    )
    fc_norm: bool = False  # with "avg": the final norm comes after the mean, not before it
    class_token: bool = True
    num_register_tokens: int = 0  # trained tokens that no head reads (arXiv 2309.16588)
    pos_embed: str = "learned"  # or "sincos2d": of sines and cosines, and not trained
    prefix_positions: bool = True  # whether tokens before the patches have positions, too
    layer_scale: Optional[float] = None  # initial factor of every branch, channel by channel (arXiv 2103.17239)
    layer_norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path_rate: float = 0.0
    drop_path_mode: str = "linear"  # rising from 0 to the rate in the last block, or "constant"
    head_bias_init: float = 0.0
    fused_attention: bool = True
    recompute: bool = False  # keep the blocks' inputs alone, and compute the rest again in the backward pass
    recompute_mid_layers: Tuple[int, ...] = ()  # blocks that then keep the tokens between attention and MLP, too

    @property
    def grid(self) -> Tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: class token, distillation token, registers, as far as there are any, in this order."""
        return int(self.class_token) + (self.distillation != "none") + self.num_register_tokens

    @property
    def num_prefix_positions(self) -> int:
        """Rows of the position embeddings before the patches'."""
        return self.num_prefix_tokens if self.prefix_positions else 0

    @property
    def num_positions(self) -> int:
        return self.num_prefix_positions + self.num_patches

    @property
    def num_classifiers(self) -> int:
        """Heads that give logits."""
        return 2 if self.distillation == "heads" else 1

    @property
    def num_head_tokens(self) -> int:
        """Tokens that the last block computes: those that classifiers read; all where the patches are averaged."""
        return self.num_tokens if self.global_pool == "avg" else self.num_classifiers

    @property
    def num_tokens(self) -> int:
        return self.num_patches + self.num_prefix_tokens

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.num_channels * self.patch_size[0] * self.patch_size[1]

    @property
    def is_random(self) -> bool:
        """Whether a training forward pass draws random numbers."""
        return max(self.dropout, self.attention_dropout, self.drop_path_rate) > 0

    @property
    def head_input_dim(self) -> int:
        return self.representation_size or self.embed_dim


def architecture_of(config: Config) -> Architecture:
    """The model that a config describes."""
    head_bias = config.head_bias_init
    return Architecture(
        image_size=(config.image_size, config.image_size),
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        pixel_mean=config.image_mean,
        pixel_std=config.image_std,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_dim=config.mlp_dim,
        num_labels=config.num_labels,
        representation_size=config.representation_size,
        distillation=config.distillation,
        global_pool=config.global_pool,
        fc_norm=config.fc_norm and config.global_pool == "avg",
        class_token=config.class_token,
        num_register_tokens=config.num_register_tokens,
        pos_embed=config.pos_embed,
        prefix_positions=config.prefix_positions,
        layer_scale=config.layer_scale,
        layer_norm_eps=config.layer_norm_eps,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        drop_path_rate=config.drop_path_rate,
        drop_path_mode=config.drop_path_mode,
        head_bias_init=head_bias if head_bias is not None else (-10.0 if config.pretrain else 0.0),
        fused_attention=config.attention == "fused",
        recompute=config.recompute_checkpoint_every_layer,
        recompute_mid_layers=config.recompute_mid_layers or (),
    )


def count_parameters(arch: Architecture, unit: str) -> int:
    """Number of weights of one unit."""
    width = arch.embed_dim
    if unit == "embed":
        return width * (arch.patch_values + 1) + (arch.num_prefix_tokens + arch.num_positions) * width
    if unit == "head":
        pre_logits = (width + 1) * arch.representation_size if arch.representation_size else 0
        return 2 * width + pre_logits + arch.num_classifiers * (arch.head_input_dim + 1) * arch.num_labels
    attention = 3 * width * (width + 1) + width * (width + 1)
    mlp = arch.mlp_dim * (width + 1) + width * (arch.mlp_dim + 1)
    return attention + mlp + (4 if arch.layer_scale is None else 6) * width


def count_forward_flops(arch: Architecture, unit: str) -> int:
    """Floating-point operations of one unit's forward pass for one image; a multiply-add counts as two.

    Matrix products only, attention included. The last block computes only what the heads read (see `vit.Block`).
    """
    width, tokens = arch.embed_dim, arch.num_tokens
    if unit == "embed":
        return 2 * arch.num_patches * arch.patch_values * width
    if unit == "head":
        pre_logits = width * arch.representation_size if arch.representation_size else 0
        return 2 * arch.num_classifiers * (pre_logits + arch.head_input_dim * arch.num_labels)
    queries = arch.num_head_tokens if unit == f"block {arch.depth - 1}" else tokens
    keys_and_values = 2 * tokens * width * width
    queries_and_output = 2 * queries * width * width
    attention = 2 * queries * tokens * width
    mlp = 2 * queries * width * arch.mlp_dim
    return 2 * (keys_and_values + queries_and_output + attention + mlp)
