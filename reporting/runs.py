"""A run folder as a comparison reads it: keys, curves and final figures, of runs that ended, were stopped, or still go on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import yaml

from errors import UserError, printable
from reporting.records import StepRecord, ValidationRecord
from reporting.story import Story, record_of

KINDS = {"step": StepRecord, "validation": ValidationRecord}


@dataclass
class RecordedRun:
    """What a run folder holds of a run."""

    name: str
    folder: Path
    settings: Optional[Mapping[str, Any]] = None  # None where config.yaml cannot be read
    story: Story = field(default_factory=Story)
    notes: List[str] = field(default_factory=list)  # what is missing or damaged
    best: Optional[ValidationRecord] = None
    training_seconds: float = 0.0
    validation_seconds: float = 0.0
    _counted_images: float = 0.0  # of the steps after the first few
    _counted_seconds: float = 0.0

    @property
    def images_per_second(self) -> Optional[float]:
        """Mean after the first few steps."""
        return self._counted_images / self._counted_seconds if self._counted_seconds else None

    def step(self, record: StepRecord) -> None:
        self.story.step(record)
        self.training_seconds += record.step_seconds
        if not record.warming_up:
            self._counted_images += record.images_per_second * record.step_seconds
            self._counted_seconds += record.step_seconds

    def validated(self, record: ValidationRecord) -> None:
        self.story.validated(record)
        self.validation_seconds += record.seconds
        if record.is_best:
            self.best = record


def read_runs(folders: Sequence[str]) -> List[RecordedRun]:
    """Raises UserError for what is no run folder, and where a run is named twice."""
    paths = [Path(folder).expanduser() for folder in folders]
    known = [path.resolve() for path in paths]
    twice = [folders[index] for index, path in enumerate(known) if path in known[:index]]
    if twice:
        raise UserError(f"the run {printable(twice[0])} is named twice.\n       Name each run once.")
    return [read_run(path, name) for path, name in zip(paths, short_names(known))]


def short_names(paths: Sequence[Path]) -> List[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return [printable(name) for name in names]
    return [printable(str(path)) for path in paths]


def read_run(folder: Path, name: str) -> RecordedRun:
    """Raises UserError where the folder has no metrics.jsonl."""
    path = folder / "metrics.jsonl"
    shown = printable(str(folder))
    if not path.is_file():
        what = "has no metrics.jsonl" if folder.is_dir() else "does not exist or is no folder"
        raise UserError(
            f"{shown} is no run to compare: it {what}.\n       Name run folders: runs print theirs at their end."
        )
    run = RecordedRun(name, folder)
    run.settings = _settings(folder / "config.yaml")
    if run.settings is None:
        run.notes.append("its config.yaml is missing or damaged: its keys are not known")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{shown}/metrics.jsonl cannot be read: {error.strerror}.\n       Make it readable.") from error
    last = lines.pop()  # empty, or the line that a run is writing right now
    damaged = sum(not _take(run, line) for line in lines if line.strip())
    if last.strip() and not _take(run, last):
        run.notes.append("its last line is cut short: the run goes on, or was killed while it wrote")
    if damaged:
        run.notes.append(f"{damaged} line{'s are' if damaged > 1 else ' is'} damaged in its metrics.jsonl and left out")
    if run.story.last_step is None:
        run.notes.append("it has no finished step yet")
    return run


def _take(run: RecordedRun, line: str) -> bool:
    """Adds a line of metrics.jsonl to the run. False where the line is damaged; events that are not compared are left out."""
    try:
        event: Dict[str, Any] = json.loads(line)
        kind = KINDS.get(event["event"])
        if kind is None:
            return True
        figures = [value for name, value in event.items() if name not in ("event", "nonfinite")]
        if not all(value is None or isinstance(value, (int, float)) for value in figures):
            return False
        record: Any = record_of(kind, event)
        if isinstance(record, StepRecord):
            run.step(record)
        else:
            run.validated(record)
    except (ValueError, TypeError, KeyError, AttributeError):  # no JSON, no object, a field too few, or null
        return False
    return True


def _settings(path: Path) -> Optional[Mapping[str, Any]]:
    """The keys of a config file with one entry, the entry's name as `config`."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(entries, dict) or len(entries) != 1:
        return None
    ((name, values),) = entries.items()
    return {"config": str(name), **values} if isinstance(values, dict) else None
