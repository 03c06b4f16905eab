"""Throughputs that others have published for recipes which configs here plan, set beside the prediction.

All are of ViT-B/16 at 224 px, 16.16, with four IPUs a replica split 3-3-3-3, as the PopTorch ViT application has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List

from planning.layout import Layout
from planning.throughput import micro_batches_of

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Published:
    """A figure and the run that it is of."""

    what: str
    machine: str
    num_ipus: int
    micro_batch_size: int
    gradient_accumulation: int
    images_per_second: float
    sets_efficiency: bool = False  # whether the IPU's efficiency is chosen so that it comes out

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.gradient_accumulation * (self.num_ipus // len(LAYERS))


LAYERS = (3, 3, 3, 3)
FIGURES = (
    Published("Graphcore, SDK 3.0, pre-training", "pod16", 16, 8, 2_048, 7_615, sets_efficiency=True),
    Published("Graphcore, SDK 3.0, pre-training", "pod64", 64, 8, 512, 27_868),
    Published("Graphcore, before SDK 2.5", "pod64", 64, 8, 512, 31_200),
    Published("Graphcore, SDK 3.0, fine-tuning", "pod16", 16, 17, 30, 7_319),
    Published("MMClassification's port, fine-tuning", "pod16-gc200", 16, 17, 32, 5_600),
)


def figures_for(config: Config, layout: Layout) -> List[Published]:
    """Those of the same model, split, machine, devices and micro-batches."""
    is_the_model = (config.hidden_size, config.num_hidden_layers, config.image_size, config.patch_size) == (
        768,
        12,
        224,
        (16, 16),
    )
    if not (is_the_model and config.trains and config.precision == "16.16" and config.stage_layers == LAYERS):
        return []
    return [
        figure
        for figure in FIGURES
        if figure.machine == layout.machine.name
        and figure.num_ipus == layout.num_used
        and figure.micro_batch_size == config.micro_batch_size
        and figure.gradient_accumulation == micro_batches_of(config, layout)
    ]
