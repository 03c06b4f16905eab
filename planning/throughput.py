"""Seconds of a micro-batch in each stage, of a weight update, and images a second, from a machine's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection, List, Optional, Sequence, Tuple

from models.architecture import Architecture, architecture_of, count_forward_flops
from models.freezing import frozen_units
from models.stages import Stage
from planning.activations import input_bytes, kept_on
from planning.layout import Layout
from planning.loading import loading_rate
from planning.machines import TERA
from planning.schedule import (
    Event,
    bubble,
    idle_share,
    makespan,
    orders_of,
    simulate,
    simulate_lockstep,
    simulate_shared,
)
from planning.traffic import traffic_of
from planning.update import UpdateTime, update_time

if TYPE_CHECKING:
    from config import Config

# Of numbers that are multiplied, by precision. `auto` that nobody has decided, for the machine, is what it is everywhere.
KINDS = {"16": "fp16", "bf16": "bf16", "32": "fp32", "auto": "fp32"}
EVAL_ROUNDS = 4  # micro-batches of an evaluation batch for each process, as `runtime/pipeline.py`


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one image in one part of the model."""

    forward: int
    backward: int  # with what is computed again

    @property
    def total(self) -> int:
        return self.forward + self.backward


@dataclass(frozen=True)
class Prediction:
    """What is expected of a weight update, or of an evaluation batch. Times are relative where no rate is known."""

    forward: List[float]  # seconds of a micro-batch in each part, its input's way to it included
    backward: List[float]
    micro_batches: int
    bubble: float  # of equal stages
    idle: float  # with these stages
    update: UpdateTime
    events: List[Event]
    images_per_second: Optional[float]
    loading: Optional[float]  # images a second that the hosts can load at most

    @property
    def seconds(self) -> float:
        return makespan(self.events) + self.update.total


def work_of(arch: Architecture, stage: Stage, trains: bool, frozen: Collection[str] = ()) -> Work:
    """Backward is twice forward, once for the embedding (pixels need no gradient); recomputed blocks cost forward once more.

    The units `frozen` have no backward pass.
    """
    forward = backward = 0
    for unit in stage.units:
        flops = count_forward_flops(arch, unit)
        again = arch.recompute and unit.startswith("block")
        forward += flops
        if unit not in frozen:
            backward += flops * ((1 if unit == "embed" else 2) + again)
    return Work(forward, backward if trains else 0)


def seconds_of(config: Config, layout: Layout, part: Stage) -> Tuple[float, float]:
    """Forward and backward of a micro-batch in a part, with the way of its input there and of its gradient back.

    Where the rate is not known it is taken for 1 TFLOP/s: ratios hold all the same.
    """
    arch, frozen = architecture_of(config), frozen_units(config)
    work, rate = work_of(arch, part, config.trains, frozen), rate_of(config, layout) or TERA
    way = 0.0
    if not part.has_embed:
        kept = kept_on(layout.machine.device.kind, config, arch)
        way = _seconds(config.micro_batch_size * input_bytes(arch, kept, part), _link(layout))
    forward = config.micro_batch_size * work.forward / rate + way
    units_before = 0 if part.has_embed else 1 + (part.blocks[0] if part.blocks else arch.depth)
    way_back = way if config.trains and units_before > len(frozen) else 0.0
    return forward, config.micro_batch_size * work.backward / rate + way_back


def predict(config: Config, layout: Layout) -> Prediction:
    placement = layout.placement
    size, parts = placement.pipeline_size, placement.parts
    times = [seconds_of(config, layout, part) for part in parts]
    forward, backward = [time[0] for time in times], [time[1] for time in times]
    micro_batches = micro_batches_of(config, layout)
    events = _events(config, layout, forward, backward, micro_batches)
    update = update_time(config, layout, traffic_of(config, layout))
    images = micro_batches * placement.replica_groups * config.micro_batch_size
    computed = images / (makespan(events) + update.total) if rate_of(config, layout) is not None else None
    loading = loading_rate(config, layout)
    return Prediction(
        forward=forward,
        backward=backward,
        micro_batches=micro_batches,
        bubble=bubble(size, micro_batches, len(parts) // size),
        idle=idle_share(events, size),
        update=update,
        events=events,
        images_per_second=computed if computed is None or loading is None else min(computed, loading),
        loading=loading,
    )


def micro_batches_of(config: Config, layout: Layout) -> int:
    """That a replica group works through before the pipeline drains."""
    placement = layout.placement
    if config.trains:
        return config.gradient_accumulation * placement.folded_replicas
    return EVAL_ROUNDS * placement.pipeline_size if placement.pipeline_size > 1 else 1


def schedule_of(config: Config, layout: Layout) -> str:
    if layout.on_ipu:
        return "IPU"
    return config.schedule if config.trains else "forward"


def _events(
    config: Config, layout: Layout, forward: Sequence[float], backward: Sequence[float], micro_batches: int
) -> List[Event]:
    if layout.on_ipu:
        return simulate_lockstep(forward, backward, micro_batches)
    size, parts = layout.placement.pipeline_size, len(layout.placement.parts)
    schedule = schedule_of(config, layout) if size > 1 else ("1f1b" if config.trains else "forward")
    orders = orders_of(schedule, size, parts, micro_batches)
    cores = cores_of_a_group(layout)
    if cores is not None and cores < size:
        return simulate_shared(orders, forward, backward, cores)
    return simulate(orders, forward, backward)


def cores_of_a_group(layout: Layout) -> Optional[float]:
    """CPU cores that there are for the processes of one replica group; None on other devices, or for a process with all."""
    if layout.machine.device.kind != "cpu" or layout.placement.runtime == "single":
        return None
    return layout.machine.num_devices / layout.placement.replica_groups


def rate_of(config: Config, layout: Layout) -> Optional[float]:
    """FLOP/s of one process; on CPUs of one thread with a core of its own, but for `single`, which has all of them."""
    device = layout.machine.device
    rate = device.rate(KINDS[config.precision.split(".")[0]])
    if rate is None or device.kind != "cpu" or layout.placement.runtime == "single":
        return rate
    return rate / (layout.machine.num_devices // layout.machine.hosts)


def _link(layout: Layout) -> Optional[float]:
    """Between the stages of a replica."""
    device = layout.machine.device
    return device.host_link if layout.crosses_hosts else device.link


def _seconds(amount: float, bytes_per_second: Optional[float]) -> float:
    """0 where the link is not known: within a CPU's memory it is no matter."""
    return amount / bytes_per_second if bytes_per_second else 0.0
