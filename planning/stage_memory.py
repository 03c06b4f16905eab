"""Memory of each process of a layout: weights, gradients, optimiser state and activations, beside what the device has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from models.architecture import architecture_of
from models.freezing import frozen_units
from planning.activations import forward_bytes, kept_on, stash_depth, waiting_bytes, weight_copies, working_bytes
from planning.layout import Layout
from planning.memory import WeightMemory, weight_memory
from planning.parameters import parameter_sizes
from planning.schedule import most_in_flight, orders_of
from planning.throughput import micro_batches_of
from planning.traffic import is_sharded

if TYPE_CHECKING:
    from config import Config

# Of one device, or the micro-batch where it is larger: `runtime/single.py`.
EVAL_BATCH_SIZE = {"cpu": 64, "gpu": 256}


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one process. `in_flight` micro-batches wait for their backward pass at most."""

    weights: WeightMemory
    in_flight: int
    waiting: int  # of all micro-batches in flight
    working: int  # of the one that is computed

    @property
    def total(self) -> int:
        return self.weights.total + self.waiting + self.working


def stage_memories(config: Config, layout: Layout) -> List[StageMemory]:
    """Of each process of a replica group, in order."""
    arch, placement = architecture_of(config), layout.placement
    kept = kept_on(layout.machine.device.kind, config, arch)
    frozen = frozen_units(config)
    shards = placement.replica_groups if is_sharded(config, layout) else 1
    batch = config.micro_batch_size
    if not config.trains and placement.runtime == "single":
        batch = max(batch, EVAL_BATCH_SIZE.get(layout.machine.device.kind, batch))
    kind = layout.machine.device.kind
    waiting = [
        batch * waiting_bytes(arch, kept, part, frozen) + weight_copies(arch, config, kind, part)
        if config.trains
        else 0
        for part in placement.parts
    ]
    memories = []
    for rank, (in_flight, held) in enumerate(_in_flight(config, layout, waiting)):
        parts = [placement.parts[index] for index in placement.parts_of(rank)]
        units = [unit for part in parts for unit in part.units]
        working = batch * max(
            working_bytes(arch, kept, part)
            if config.trains and not set(part.units) <= set(frozen)
            else forward_bytes(arch, kept, part)
            for part in parts
        )
        weights = weight_memory(config, parameter_sizes(arch, units), shards, layout.on_ipu)
        memories.append(StageMemory(weights, in_flight, held, working))
    return memories


def _in_flight(config: Config, layout: Layout, waiting: Sequence[int]) -> List[Tuple[int, int]]:
    """(micro-batches, bytes) of each process."""
    size, parts = layout.placement.pipeline_size, len(waiting)
    if not config.trains:
        return [(0, 0)] * size
    if size == 1 and parts == 1:  # one micro-batch after the other
        return [(1, waiting[0])]
    micro_batches = micro_batches_of(config, layout)
    if layout.on_ipu:
        depths = [min(stash_depth(stage, size), micro_batches) for stage in range(size)]
        return [(depth, depth * held) for depth, held in zip(depths, waiting)]
    if config.schedule != "interleaved":  # all; or as many as stages are left
        depths = [micro_batches if config.schedule == "gpipe" else min(size - s, micro_batches) for s in range(size)]
        return [(depth, depth * held) for depth, held in zip(depths, waiting)]
    return [most_in_flight(order, waiting) for order in orders_of("interleaved", size, parts, micro_batches)]


def fullest(memories: Sequence[StageMemory]) -> int:
    """Index of the process with most to hold."""
    return max(range(len(memories)), key=lambda index: memories[index].total)


def share_of_device(memory: StageMemory, layout: Layout) -> Optional[float]:
    """Of the device's memory; processes on CPUs have theirs together."""
    whole = layout.machine.device.memory
    if whole is None:
        return None
    processes = layout.num_used // layout.hosts if layout.machine.device.kind == "cpu" else 1
    return memory.total / (whole / processes)
