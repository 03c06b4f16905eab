"""What a run is, for its reports: settings, plan, versions, machine and data."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Dict, Optional, Tuple

import numpy as np

import machine
from allocation import allocation_table
from models.architecture import architecture_of, count_parameters
from reporting.records import RunRecord

if TYPE_CHECKING:
    from config import Config
    from dataset.base import Source
    from placement import Placement

PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "poptorch")


def run_record(
    config: Config,
    placement: Placement,
    source: Source,
    held_out: Optional[Source],
    num_steps: int,
    resumed_step: int,
) -> RunRecord:
    """Call it in the main process; it knows its own machine alone."""
    arch = architecture_of(config)
    units = ["embed", *(f"block {index}" for index in range(arch.depth)), "head"]
    return RunRecord(
        name=config.name,
        command=config.command,
        settings=config.model_dump(mode="json"),
        plan=allocation_table(config, placement),
        runtime=placement.runtime,
        versions=_versions(),
        machine=machine.describe(),
        class_names=source.class_names,
        class_counts=_class_counts(source.labels, source.num_classes),
        num_train=len(source),
        num_validation=len(held_out) if held_out is not None else 0,
        num_parameters=sum(count_parameters(arch, unit) for unit in units),
        num_steps=num_steps,
        multi_label=source.labels.ndim == 2,
        resumed_step=resumed_step,
        given=tuple(sorted(config.given)),
    )


def _versions() -> Dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _class_counts(labels: np.ndarray, num_classes: int) -> Tuple[int, ...]:
    if labels.ndim == 2:
        return tuple(int(count) for count in labels.sum(axis=0, dtype=np.int64))
    return tuple(int(count) for count in np.bincount(labels, minlength=num_classes))
