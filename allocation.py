"""The device-allocation table: what each stage of a plan owns, weighs and costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from models.architecture import Architecture, architecture_of, count_forward_flops, count_parameters
from models.stages import Stage, plan_stages
from reporting.tables import table

if TYPE_CHECKING:
    from config import Config
    from placement import Placement

MIB = 2**20


def allocation_table(config: Config, placement: Placement) -> str:
    """One row a stage: units, parameters, weight memory and share of the model's compute, as text."""
    arch = architecture_of(config)
    stages = plan_stages(config.stage_layers)
    units = [unit for stage in stages for unit in stage.units]
    flops = sum(count_forward_flops(arch, unit) for unit in units)
    parameters = sum(count_parameters(arch, unit) for unit in units)
    size = 2 if config.precision.endswith(".16") else 4  # bytes of a weight
    rows = [
        [str(stage.index), _where(placement, stage), stage.describe(), *_figures(arch, stage, flops, size)]
        for stage in stages
    ]
    rows.append(["all", "", "", f"{parameters:,}", f"{parameters * size / MIB:.1f} MiB", "100.0 %"])
    headers = ["stage", "runs on", "units", "parameters", "weights", "compute"]
    return f"Device allocation\n{table(headers, rows)}\n{_sizes(config, placement)}"


def plan_text(config: Config, placement: Placement) -> str:
    """What `plan.py` and `--compile-only` print: the resolved config, the table, and what was folded."""
    folding = placement.folding()
    unused = config.unused(placement.runtime)
    lines = [config.to_yaml(), allocation_table(config, placement)]
    lines += [folding] if folding else []
    lines += [f"keys of the config that this run does not use: {', '.join(unused)}"] if unused else []
    return "\n".join(lines)


def _figures(arch: Architecture, stage: Stage, total_flops: int, size: int) -> List[str]:
    parameters = sum(count_parameters(arch, unit) for unit in stage.units)
    flops = sum(count_forward_flops(arch, unit) for unit in stage.units)
    return [f"{parameters:,}", f"{parameters * size / MIB:.1f} MiB", f"{100 * flops / total_flops:.1f} %"]


def _where(placement: Placement, stage: Stage) -> str:
    if placement.runtime == "single":
        return "the one device"
    part = next(part for part in placement.parts if set(stage.units) <= set(part.units))
    process = part.index % placement.pipeline_size
    ranks = range(process, placement.num_devices, placement.pipeline_size)
    word = "IPU" if placement.runtime == "ipu" else "rank"
    return f"{word} {', '.join(map(str, ranks))}" if len(ranks) <= 4 else f"{word} {process} of each replica"


def _sizes(config: Config, placement: Placement) -> str:
    schedule = f", schedule {config.schedule}" if placement.runtime == "pipeline" else ""
    if not config.trains:
        return (
            f"Runtime {placement.runtime}{schedule}; evaluation in micro-batches of {config.micro_batch_size} images."
        )
    return (
        f"Runtime {placement.runtime}{schedule}; a weight update takes micro batch {config.micro_batch_size} x gradient "
        f"accumulation {config.gradient_accumulation} x replicas {config.replication_factor} = "
        f"{config.global_batch_size:,} images; a host step makes {config.device_iterations} of them."
    )
