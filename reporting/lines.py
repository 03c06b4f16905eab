"""The text of the log: records to lines, in the form that the public PopTorch ViT app's log parsers expect.

Benchmark runners search every line for `loss:`, `accuracy:`, `throughput:` and `Valid Accuracy:`, so no other line may
use these words with a colon.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import List

from reporting.records import SaveRecord, StepRecord, Summary, ValidationRecord

STARVING = 0.1  # share of the time above which waiting for data is worth a remark


def step_line(record: StepRecord) -> str:
    """One host step on one line."""
    return (
        f"Epoch: {record.epoch:.2f}/{record.num_epochs:.2f}"
        f" Step: {record.step}/{record.num_steps}"
        f" Lr: {learning_rate(record.learning_rate)}"
        f" loss: {record.loss:.3f}"
        f" accuracy: {record.accuracy:.3f}"
        f" throughput: {record.images_per_second:.{1 if record.images_per_second >= 10 else 3}f} samples/sec"
        f" Mean step duration: {record.step_seconds:.3f} seconds"
        f" Mean data consumption ratio: {data_wait_share(record):.3f}"
        f"{f' Loss scale: {record.loss_scale:g}' if record.loss_scale != 1.0 else ''}"
    )


def validation_line(record: ValidationRecord) -> str:
    """One validation pass on one line."""
    best = ", best so far" if record.is_best else ""
    whose = "Averaged weights: " if record.averaged else ""
    return (
        f"{whose}Valid Loss: {record.loss:.3f} Valid Accuracy: {record.top1:.5f} {second_score(record)}: {record.top5:.5f}"
        f"{'' if record.auc is None else f' AUC: {record.auc:.5f}'}"
        f" ({record.num_samples:,} samples, {record.seconds:.1f} s{best})"
    )


def saved_line(record: SaveRecord) -> str:
    """One step that is on the disk, on one line."""
    return (
        f"Saved step_{record.step}: {size(record.num_bytes)} in {record.seconds:.2f} s"
        f" (training waited {record.stall_seconds:.3f} s)"
    )


def second_score(record: ValidationRecord) -> str:
    """What `top5` is called: of images with several labels, accuracy counts labels, and this whole images."""
    return "All labels right" if record.multi_label else "Top5"


def summary_lines(summary: Summary) -> List[str]:
    """The closing block: what was reached, where it lies, and what to do next."""
    state = f"Stopped early ({summary.interrupted})" if summary.interrupted else "Done"
    lines = [f"{state}: {summary.steps:,} steps in {duration(summary.seconds)}"]
    if summary.images_per_second is not None:
        lines.append(f"  throughput  {rate(summary.images_per_second)} images/s, mean without the first steps")
    if summary.evaluated_per_second is not None:
        lines.append(f"  evaluation  {rate(summary.evaluated_per_second)} images/s")
    if summary.data_wait_share is not None and summary.data_wait_share > STARVING:
        share = f"{100 * summary.data_wait_share:.0f} %"
        lines.append(f"  data        {share} of the time went by waiting for images: try more --dataloader-workers")
    at_step = f" at step {summary.best_step:,}" if summary.best_step is not None else ""
    if summary.best_auc is not None:
        lines.append(f"  best AUC    {summary.best_auc:.4f}{at_step}")
    elif summary.best_top1 is not None:
        share = f"{100 * summary.best_top1:.2f} %{at_step}"
        lines.append(f"  best        {share}, of the labels" if summary.multi_label else f"  best top-1  {share}")
    if summary.run_folder:
        lines.append(f"  run folder  {summary.run_folder}")
        lines += places(Path(summary.run_folder))
    if summary.next_command:
        lines.append(f"  next        {summary.next_command}")
    return lines


def places(folder: Path) -> List[str]:
    """What lies in a run's folder, as far as it is there: files and links, and the command that draws the curves."""
    named = [name for name in ("report.html", "metrics.jsonl") if (folder / name).is_file()]
    named += [f"{name} ({os.readlink(folder / name)})" for name in ("best", "latest") if (folder / name).is_symlink()]
    lines = [f"  in it       {', '.join(named)}"] if named else []
    if (folder / "tensorboard").is_dir():
        lines.append(f"  curves      tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
    return lines


def learning_rate(value: float) -> str:
    """Six decimals, or an exponent where these would show too little of a small rate."""
    return f"{value:.3e}" if 0 < value < 1e-4 else f"{value:.6f}"


def data_wait_share(record: StepRecord) -> float:
    """The share (0 to 1) of the step that went by waiting for data."""
    return record.data_wait_seconds / record.step_seconds if record.step_seconds > 0 else 0.0


def rate(images_per_second: float) -> str:
    """Images a second, with decimals only where they matter."""
    return f"{images_per_second:,.0f}" if images_per_second >= 100 else f"{images_per_second:.2f}"


def duration(seconds: float) -> str:
    """duration(27.31) -> "27.3 s", duration(3754) -> "1:02:34"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def size(num_bytes: int) -> str:
    """size(1234567) -> "1.2 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"
