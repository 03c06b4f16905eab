"""Throughputs that others have published for recipes which configs here plan, set beside the prediction.

All are of ViT-B/16 at 224 px, 16.16, with four IPUs a replica split 3-3-3-3, as the PopTorch ViT application has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List

from planning.layout import Layout

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Published:
    """A figure and the run that it is of."""

    what: str
    machine: str
    num_ipus: int
    global_batch_size: int
    images_per_second: float
    sets_efficiency: bool = False  # whether the IPU's efficiency is chosen so that it comes out


FIGURES = (
    Published("Graphcore, SDK 3.0, pre-training", "pod16", 16, 65_536, 7_615, sets_efficiency=True),
    Published("Graphcore, SDK 3.0, pre-training", "pod64", 64, 65_536, 27_868),
    Published("Graphcore, before SDK 2.5", "pod64", 64, 65_536, 31_200),
    Published("Graphcore, SDK 3.0, fine-tuning", "pod16", 16, 2_040, 7_319),
    Published("MMClassification's port, fine-tuning", "pod16-gc200", 16, 2_176, 5_600),
)


def figures_for(config: Config, layout: Layout) -> List[Published]:
    """Those of the same model, machine, devices and batch."""
    is_the_model = (config.hidden_size, config.num_hidden_layers, config.image_size, config.patch_size) == (
        768,
        12,
        224,
        (16, 16),
    )
    if not (is_the_model and config.trains and config.precision == "16.16" and len(config.stage_layers) == 4):
        return []
    return [
        figure
        for figure in FIGURES
        if figure.machine == layout.machine.name
        and figure.num_ipus == layout.num_used
        and figure.global_batch_size == config.global_batch_size
    ]
