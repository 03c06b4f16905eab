"""What timm's names of architectures say beyond the weights: widths and heads of those that the model here can compute."""

from __future__ import annotations

import re
from typing import Dict, Tuple

from models.architecture import Architecture

# Width and heads: arXiv 2010.11929 (table 1), 2012.12877 (table 1), 2106.04560 (table 2).
SIZES: Dict[str, Tuple[int, int]] = {
    "tiny": (192, 3),
    "small": (384, 6),
    "base": (768, 12),
    "large": (1024, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "gigantic": (1664, 16),
}
NAME = re.compile(r"(?:vit|deit|deit3)_([a-z]+)(?:_distilled)?_patch\d+_\d+(?:_in21k)?(?:\..*)?")


def heads_of(name: str, width: int) -> int:
    """Heads of an architecture by name; 0 for one that is not in the table, or has another width there."""
    match = NAME.fullmatch(name)
    if match is None or match.group(1) not in SIZES:
        return 0
    known_width, heads = SIZES[match.group(1)]
    return heads if known_width == width else 0


def name_of(arch: Architecture) -> str:
    """The timm architecture to build this model from; what differs from it goes beside as arguments."""
    sizes = {known: size for size, known in SIZES.items()}
    if arch.distillation != "none":  # timm has these three with the token
        size = sizes.get((arch.embed_dim, arch.num_heads), "base")
        return f"deit_{size if size in ('tiny', 'small') else 'base'}_distilled_patch16_224"
    size = sizes.get((arch.embed_dim, arch.num_heads), "base")
    patch = 32 if arch.patch_size == (32, 32) and size in ("tiny", "small", "base", "large") else 16
    patch = 14 if size in ("huge", "giant", "gigantic") else patch
    return "vit_tiny_patch16_224" if size == "tiny" else f"vit_{size}_patch{patch}_224"
