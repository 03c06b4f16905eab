"""What `--balance` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from planning.balance import Split, balance
from planning.layout import Layout
from planning.report import rounded
from planning.stage_memory import stage_memories
from reporting.tables import table

if TYPE_CHECKING:
    from config import Config


def balance_text(config: Config, layout: Layout, hosts: Optional[int]) -> str:
    """Before and after, and the flag that makes it so."""
    placement = layout.placement
    if len(placement.parts) < placement.planned_stages or placement.planned_stages == 1:
        return "Balance: stages do not run apart on this machine, so that no split is faster than another"
    before, after = balance(config, layout.machine, hosts)
    if after.layers == before.layers:
        layers = list(before.layers)
        return f"Balance: layers_per_ipu = {layers} has the smallest slowest stage that {len(layers)} stages can have"
    rows = [["now", *_row(config, before)], ["best", *_row(config, after)]]
    unit = "ms" if before.prediction.images_per_second is not None else "relative"
    headers = ["", "layers_per_ipu", f"slowest stage ({unit})", "idle", "fullest device", "images/s"]
    gain = 100 * (1 - after.slowest / before.slowest)
    return "\n".join(
        [
            f"Balance: the slowest stage gets {gain:.1f} % shorter",
            table(headers, rows),
            f"nothing is changed by itself: --layers-per-ipu {' '.join(map(str, after.layers))}",
        ]
    )


def _row(config: Config, split: Split) -> List[str]:
    changed = config.model_copy(update={"layers_per_ipu": split.layers})
    memory = max(one.total for one in stage_memories(changed, split.layout))
    images = split.prediction.images_per_second
    time = split.slowest * 1e3 if images is not None else split.slowest / max(split.prediction.forward)
    return [
        " ".join(map(str, split.layers)),
        f"{time:.2f}",
        f"{100 * split.prediction.idle:.1f} %",
        f"{memory / 2**20:,.0f} MiB",
        "-" if images is None else rounded(images),
    ]
