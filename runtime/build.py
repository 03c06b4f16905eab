"""Builds the runtime that a placement names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machine import local_rank, num_cores, rank
from runtime.base import Runtime

if TYPE_CHECKING:
    from config import Config
    from placement import Placement


def build_runtime(config: Config, placement: Placement) -> Runtime:
    """This process's runtime, with the model's initial weights. `pipeline` joins the other processes."""
    if placement.runtime == "single":
        from runtime.single import SingleRuntime

        return SingleRuntime(config, placement, num_cores())
    if placement.runtime == "ipu":
        from runtime.ipu import IpuRuntime

        return IpuRuntime(config, placement, num_cores())
    from runtime.pipeline import PipelineRuntime

    return PipelineRuntime(config, placement, rank(), local_rank())
