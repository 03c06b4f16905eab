"""metrics.jsonl: one JSON object a line for each host step, each validation and each saved step, made to be read by programs.

A line has an "event" ("step", "validation" or "saved"), the "time" (seconds since 1970) and the record's fields.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, TextIO, Union

from reporting.base import Reporter
from reporting.records import SaveRecord, StepRecord, ValidationRecord


class JsonlReporter(Reporter):
    """Appends to `path`, each line written out at once. Lines of steps after `resumed_step` are dropped first.

    A run that starts anew (`resumed_step` 0) keeps the file that an earlier run left there under another name.
    """

    def __init__(self, path: Path, resumed_step: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if resumed_step == 0:
            set_aside(path)
        truncate_after(path, resumed_step)
        self._file: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open for the whole run

    def step(self, record: StepRecord) -> None:
        self._append("step", record)

    def validated(self, record: ValidationRecord) -> None:
        self._append("validation", record)

    def saved(self, record: SaveRecord) -> None:
        self._append("saved", record)

    def close(self) -> None:
        self._file.close()

    def _append(self, event: str, record: Union[StepRecord, ValidationRecord, SaveRecord]) -> None:
        fields = {"event": event, "time": round(time.time(), 3), **json_fields(asdict(record))}
        self._file.write(json.dumps(fields, allow_nan=False) + "\n")


def json_fields(fields: Dict[str, Any]) -> Dict[str, Any]:
    """JSON knows no NaN or infinity: these become null, and "nonfinite": true says that there were some."""
    nonfinite = [name for name, value in fields.items() if isinstance(value, float) and not math.isfinite(value)]
    if not nonfinite:
        return fields
    return {**fields, **dict.fromkeys(nonfinite), "nonfinite": True}


def set_aside(path: Path) -> None:
    """Renames metrics.jsonl to the first free name of metrics.1.jsonl, metrics.2.jsonl, ..."""
    if not path.exists():
        return
    number = 1
    while (other := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    os.replace(path, other)


def truncate_after(path: Path, step: int) -> None:
    """Drops the lines of steps after `step`, which a resumed run writes again, and lines cut short by a crash."""
    if not path.exists():
        return
    shorter = path.with_name(path.name + ".tmp")
    with open(shorter, "w", encoding="utf-8") as file:
        file.writelines(kept_lines(path, step))
        file.flush()
        os.fsync(file.fileno())
    os.replace(shorter, path)


def kept_lines(path: Path, step: int) -> List[str]:
    """The whole lines of `path` that belong to steps up to `step`."""
    kept = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            number = fields.get("step", 0) if isinstance(fields, dict) else None
            if isinstance(number, (int, float)) and number <= step:
                kept.append(line if line.endswith("\n") else line + "\n")
    return kept
