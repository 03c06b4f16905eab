"""What a runtime says of gradients that are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

from models.stages import plan_stages, unit_of

if TYPE_CHECKING:
    from config import Config


def nonfinite_text(names: Sequence[str], config: Config) -> str:
    """The first of the parameters, its stage, and how many more there are. All may be finite, and their norm not."""
    if not names:
        return "the gradient's norm"
    stage = next(stage for stage in plan_stages(config.stage_layers) if unit_of(names[0]) in stage.units)
    more = f", and of {len(names) - 1} more parameters" if len(names) > 1 else ""
    return f"the gradient of {names[0]} in stage {stage.index} ({stage.describe()}){more}"
