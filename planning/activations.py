"""Bytes of activations that wait for the backward pass: of a block, of a stage, and of all micro-batches in flight.

N tokens, Q those that a block computes (all but in the last block), D width, M hidden width of the MLP, H heads; for one image.
c and t are the bytes of a number in matrix products and in the tokens between blocks. A block keeps, to the last byte that
autograd saves on a CPU in float32 (of fewer than 16 images a little more, where products of class tokens are padded):

    before attention   N D t + 8 N                     tokens, and mean and deviation of the norm
    attention          N D c + (Q + 2 N) D c + Q D c   its input, queries, keys and values, its result
                       4 H Q                           fused: a number for each row of weights; else 4 H Q N, the weights
    before the MLP     Q D t + 8 Q
    MLP                Q D c + 2 Q M c                 its input, and what is before and after GELU
    dropout            a mask for each number dropped
    layer scale        2 Q D c                         what the factors multiply
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection

from models.architecture import Architecture
from models.freezing import frozen_units
from models.stages import Stage

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Kept:
    """How numbers are kept on a kind of device."""

    product: int  # bytes, c
    token: int  # bytes, t
    mask: int  # bytes a number that dropout has gone over
    weight_of_attention: int  # bytes of one, where they are kept
    keeps_attention: bool  # whether all N x Q weights are kept, rather than a number for each row


def kept_on(kind: str, config: Config, arch: Architecture) -> Kept:
    product = 4 if config.precision.startswith(("32", "auto")) else 2
    if kind == "ipu":  # no fused attention, and masks are drawn again from their seed
        return Kept(product, product, mask=0, weight_of_attention=product, keeps_attention=True)
    keeps_attention = not arch.fused_attention or (kind == "cpu" and arch.attention_dropout > 0)
    mask = product if kind == "cpu" else 1
    token = 2 if config.precision.endswith(".16") else 4
    return Kept(product, token, mask, weight_of_attention=4, keeps_attention=keeps_attention)


def unit_bytes(arch: Architecture, kept: Kept, unit: str) -> int:
    """What one unit keeps of one image where nothing is recomputed."""
    if unit == "embed":
        dropped = arch.num_tokens * arch.embed_dim * kept.mask if arch.dropout else 0
        return arch.num_patches * arch.patch_values * kept.product + dropped
    if unit == "head":
        return _head_bytes(arch)
    return (
        before_block(arch, kept) + attention_bytes(arch, kept, unit) + between(arch, kept, unit) + mlp(arch, kept, unit)
    )


def _head_bytes(arch: Architecture) -> int:
    """In float32: tokens, norm, representation, log-probabilities; and the label."""
    width, read = arch.embed_dim, 8 * arch.embed_dim + 8
    if (
        arch.global_pool == "avg" and not arch.fc_norm
    ):  # the norm goes over all patches, what comes after it over their mean
        read = arch.num_patches * (4 * width + 8) + 4 * width
    return arch.num_classifiers * (read + 4 * (arch.representation_size or 0)) + 4 * arch.num_labels + 8


def before_block(arch: Architecture, kept: Kept) -> int:
    """The tokens that a block takes."""
    return arch.num_tokens * arch.embed_dim * kept.token


def between(arch: Architecture, kept: Kept, unit: str) -> int:
    """The tokens between attention and MLP."""
    return queries_of(arch, unit) * arch.embed_dim * kept.token


def attention_bytes(arch: Architecture, kept: Kept, unit: str) -> int:
    tokens, queries, width = arch.num_tokens, queries_of(arch, unit), arch.embed_dim
    products = tokens * width + (queries + 2 * tokens) * width + queries * width
    total = 8 * tokens + products * kept.product
    weights = arch.num_heads * queries * (tokens if kept.keeps_attention else 1)
    total += weights * (kept.weight_of_attention if kept.keeps_attention else 4)
    if arch.attention_dropout and kept.keeps_attention:
        total += weights * (kept.mask + kept.product)
    return total + (queries * width * kept.mask if arch.dropout else 0) + _scaled(arch, kept, queries)


def mlp(arch: Architecture, kept: Kept, unit: str) -> int:
    queries, width, hidden = queries_of(arch, unit), arch.embed_dim, arch.mlp_dim
    masks = queries * (hidden + width) * kept.mask if arch.dropout else 0
    return 8 * queries + queries * (width + 2 * hidden) * kept.product + masks + _scaled(arch, kept, queries)


def _scaled(arch: Architecture, kept: Kept, queries: int) -> int:
    return 0 if arch.layer_scale is None else queries * arch.embed_dim * kept.product


def queries_of(arch: Architecture, unit: str) -> int:
    """Tokens that a block computes."""
    return arch.num_head_tokens if unit == f"block {arch.depth - 1}" else arch.num_tokens


def waiting_bytes(arch: Architecture, kept: Kept, stage: Stage, frozen: Collection[str] = ()) -> int:
    """What a stage keeps of one image from its forward to its backward pass; the units `frozen` have none."""
    total = 0 if stage.has_head else boundary_bytes(arch, kept, stage)  # its output, which gradients come back for
    for unit in (unit for unit in stage.units if unit not in frozen):
        if arch.recompute and unit.startswith("block"):
            total += before_block(arch, kept)
            if int(unit[len("block ") :]) in arch.recompute_mid_layers:
                total += between(arch, kept, unit)
        else:
            total += unit_bytes(arch, kept, unit)
    return total


def weight_copies(arch: Architecture, config: Config, kind: str, stage: Stage) -> int:
    """16-bit copies of float32 matrices that autocast makes on a GPU for each micro-batch, and that its backward pass needs."""
    if kind != "gpu" or config.precision not in ("16.32", "bf16.32") or arch.recompute:
        return 0
    trained = set(stage.units).difference(frozen_units(config))
    blocks = len(trained.difference(("embed", "head"))) * (4 * arch.embed_dim**2 + 2 * arch.embed_dim * arch.mlp_dim)
    return 2 * (blocks + (arch.patch_values * arch.embed_dim if "embed" in trained else 0))


def working_bytes(arch: Architecture, kept: Kept, stage: Stage) -> int:
    """What the backward pass of one image needs besides: the largest block recomputed, and the gradients around its MLP."""
    blocks = [unit for unit in stage.units if unit.startswith("block")]
    if not blocks:
        return 0
    gradients = max(2 * queries_of(arch, unit) * arch.mlp_dim * kept.product for unit in blocks)
    return gradients + (max(_recomputed(arch, kept, unit) for unit in blocks) if arch.recompute else 0)


def forward_bytes(arch: Architecture, kept: Kept, stage: Stage) -> int:
    """What is there at most while nothing is kept for a backward pass."""
    wide = [queries_of(arch, unit) * (2 * arch.mlp_dim + 2 * arch.embed_dim) for unit in stage.units if unit[0] == "b"]
    return max([*wide, arch.num_tokens * arch.embed_dim]) * kept.product


def boundary_bytes(arch: Architecture, kept: Kept, stage: Stage) -> int:
    """Tokens of one image that a stage hands on."""
    tokens = arch.num_head_tokens if arch.depth - 1 in stage.blocks else arch.num_tokens
    return tokens * arch.embed_dim * kept.token


def input_bytes(arch: Architecture, kept: Kept, stage: Stage) -> int:
    """Tokens of one image that a stage takes: after the last block, only those that heads read."""
    return (arch.num_tokens if stage.blocks else arch.num_head_tokens) * arch.embed_dim * kept.token


def _recomputed(arch: Architecture, kept: Kept, unit: str) -> int:
    attention, feed_forward = attention_bytes(arch, kept, unit), mlp(arch, kept, unit)
    if int(unit[len("block ") :]) in arch.recompute_mid_layers:
        return max(attention, feed_forward)
    return attention + between(arch, kept, unit) + feed_forward


def stash_depth(stage: int, num_stages: int) -> int:
    """Micro-batches that PopART keeps of what a stage stashes: its backward pass comes 2 (S - 1 - s) cycles later."""
    return 2 * (num_stages - 1 - stage) + 1
