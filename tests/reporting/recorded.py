"""Run folders as runs leave them, written by the reporter that writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reporting.jsonl import JsonlReporter


def write_run(
    folder: Path, step_record: Any, validation_record: Any, name: str = "toy", steps: int = 4, **keys: Any
) -> Path:
    """A run of `steps` steps of 100 images in 0.5 s, the first two of them slow, with a validation after every second step."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({name: {"learning_rate": 0.001, **keys}}), encoding="utf-8")
    reporter = JsonlReporter(folder / "metrics.jsonl")
    for step in range(1, steps + 1):
        slow = {"images_per_second": 20.0, "step_seconds": 5.0, "warming_up": True}
        usual = {"images_per_second": 200.0, "step_seconds": 0.5, "warming_up": False}
        reporter.step(
            step_record(step=step, num_steps=4, epoch=step / 2, loss=2.0 / step, **(slow if step <= 2 else usual))
        )
        if step % 2 == 0:
            right = {2: 0.5, 4: 0.75}.get(step, 0.25)
            reporter.validated(
                validation_record(step=step, loss=1.0 / step, top1=right, top5=1.0, seconds=0.25, is_best=step <= 4)
            )
    reporter.close()
    return folder
