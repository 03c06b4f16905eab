"""What `--balance` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional

from planning.balance import Split, balance
from planning.layout import Layout
from planning.stage_memory import stage_memories
from planning.units import rounded, size_text, time_unit
from reporting.tables import table

if TYPE_CHECKING:
    from config import Config


def balance_text(config: Config, layout: Layout, hosts: Optional[int]) -> str:
    """Before and after, and the flag that makes it so."""
    why_not = _why_not(layout)
    if why_not:
        return why_not
    before, after = balance(config, layout.machine, hosts)
    if after.layers == before.layers:
        return _is_best(before)
    unit, factor = time_unit([before.slowest])
    if before.prediction.images_per_second is None:
        unit, factor = "relative", 1 / max(before.prediction.forward)
    rows = [["now", *_row(config, before, factor)], ["best", *_row(config, after, factor)]]
    headers = ["", "layers_per_ipu", f"slowest stage ({unit})", "idle", "fullest device", "images/s"]
    last = f"nothing is changed by itself: {_flag(after)}"
    return "\n".join([_gain(before, after), table(headers, rows), last])


def balance_line(config: Config, layout: Layout, hosts: Optional[int]) -> str:
    """The same in one line."""
    why_not = _why_not(layout)
    if why_not:
        return why_not
    before, after = balance(config, layout.machine, hosts)
    return _is_best(before) if after.layers == before.layers else f"{_gain(before, after)}: {_flag(after)}"


def _why_not(layout: Layout) -> str:
    placement = layout.placement
    if len(placement.parts) < placement.planned_stages or placement.planned_stages == 1:
        return "Balance: stages do not run apart on this machine, so that no split is faster than another"
    return ""


def _is_best(split: Split) -> str:
    layers = list(split.layers)
    return f"Balance: layers_per_ipu = {layers} has the smallest slowest stage that {len(layers)} stages can have"


def _gain(before: Split, after: Split) -> str:
    return f"Balance: the slowest stage gets {100 * (1 - after.slowest / before.slowest):.1f} % shorter"


def _flag(split: Split) -> str:
    return f"--layers-per-ipu {' '.join(map(str, split.layers))}"


def _row(config: Config, split: Split, factor: float) -> List[str]:
    changed = config.model_copy(update={"layers_per_ipu": split.layers})
    memory = max(one.total for one in stage_memories(changed, split.layout))
    images = split.prediction.images_per_second
    return [
        " ".join(map(str, split.layers)),
        rounded(split.slowest * factor),
        f"{100 * split.prediction.idle:.1f} %",
        size_text(memory),
        "-" if images is None else rounded(images),
    ]
