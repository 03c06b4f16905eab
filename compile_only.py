"""What `--compile-only` does: shows the plan, and compiles it where the runtime is one that compiles ahead; nothing runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocation import plan_text
from runtime.precision_choice import decided

if TYPE_CHECKING:
    from config import Config
    from placement import Placement


def compile_only(config: Config, placement: Placement) -> int:
    """Returns the exit code. On IPUs the executables go into `executable_cache_dir`, if there is one. No data is read."""
    config, chosen = decided(config, placement.runtime)
    print(plan_text(config, placement), *chosen, sep="\n", flush=True)
    if placement.runtime == "ipu":
        from runtime.build import build_runtime

        runtime = build_runtime(config, placement)
        evaluates = not config.trains or config.validation_epochs > 0
        multi_label = config.dataset == "chest_xray" or len(config.label_columns or ()) > 1
        notes = runtime.prepare(evaluates, multi_label)
        if runtime.is_main:
            print(*runtime.notes, *notes, sep="\n", flush=True)
        runtime.close()
    else:
        print(f"nothing is compiled ahead by runtime = {placement.runtime}: this is the plan alone")
    return 0
