"""The stage plan: which pipeline stage owns which units of the model. Pure Python, read by everything that shows or runs it.

A model is a list of units: `embed`, `block 0` … `block L-1`, `head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple


@dataclass(frozen=True)
class Stage:
    """A run of neighbouring units that one device computes."""

    index: int
    units: Tuple[str, ...]

    @property
    def has_embed(self) -> bool:
        return "embed" in self.units

    @property
    def has_head(self) -> bool:
        return "head" in self.units

    @property
    def blocks(self) -> Tuple[int, ...]:
        """Global indices of the encoder blocks of this stage."""
        return tuple(int(unit[len("block ") :]) for unit in self.units if unit.startswith("block "))

    def describe(self) -> str:
        """Units in words, blocks as a range: "embed, blocks 0-2"."""
        blocks = self.blocks
        words = ["embed"] if self.has_embed else []
        if len(blocks) == 1:
            words.append(f"block {blocks[0]}")
        elif blocks:
            words.append(f"blocks {blocks[0]}-{blocks[-1]}")
        return ", ".join(words + (["head"] if self.has_head else []))


def plan_stages(layers_per_ipu: Sequence[int]) -> List[Stage]:
    """plan_stages([1, 2]) -> [Stage(0, ("embed", "block 0")), Stage(1, ("block 1", "block 2", "head"))]"""
    stages = []
    first_block = 0
    for index, num_blocks in enumerate(layers_per_ipu):
        units = [f"block {block}" for block in range(first_block, first_block + num_blocks)]
        first_block += num_blocks
        if index == 0:
            units.insert(0, "embed")
        if index == len(layers_per_ipu) - 1:
            units.append("head")
        stages.append(Stage(index, tuple(units)))
    return stages


def unit_of(parameter: str) -> str:
    """The unit that owns a parameter: unit_of("blocks.3.norm1.weight") -> "block 3"."""
    first, *rest = parameter.split(".")
    if first == "blocks":
        return f"block {rest[0]}"
    return "embed" if first in ("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed") else "head"


def merge_stages(stages: Sequence[Stage], index: int) -> Stage:
    """Neighbouring stages folded onto one device."""
    return Stage(index, tuple(unit for stage in stages for unit in stage.units))


def fold_stages(stages: Sequence[Stage], num_parts: int) -> List[Stage]:
    """Folds a plan onto fewer devices: `num_parts` runs of neighbouring stages, as even as can be."""
    bounds = [round(part * len(stages) / num_parts) for part in range(num_parts + 1)]
    return [merge_stages(stages[bounds[part] : bounds[part + 1]], part) for part in range(num_parts)]
