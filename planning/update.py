"""Seconds of a weight update after the last backward pass: gradients over replicas, the optimiser's step, shared weights.

Nothing of it overlaps with passes or with each other: every runtime reduces once a weight update, and steps then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Mapping, Optional

from models.architecture import architecture_of
from models.freezing import is_frozen
from planning.layout import Layout
from planning.memory import weight_memory
from planning.parameters import parameter_sizes
from planning.traffic import Traffic, is_sharded

if TYPE_CHECKING:
    from config import Config

MESSAGE = 2**24  # gradients that are sent at once: `runtime/replicas.py`
COPIES = 16  # bytes a gradient that are read and written to put messages together and take them apart


@dataclass(frozen=True)
class UpdateTime:
    """Seconds of the stage that takes longest in each part: all wait for it."""

    reduction: float = 0.0  # of gradients over replicas
    optimizer: float = 0.0  # reading and writing weights, gradients and state
    sharing: float = 0.0  # of weights, where replicas share the optimiser's state

    @property
    def between_replicas(self) -> float:
        return self.reduction + self.sharing

    @property
    def total(self) -> float:
        return self.reduction + self.optimizer + self.sharing


def update_time(config: Config, layout: Layout, traffic: Traffic) -> UpdateTime:
    if not config.trains:
        return UpdateTime()
    stages = [_trained_sizes(config, layout, rank) for rank in range(layout.placement.pipeline_size)]
    counts = [sum(sizes.values()) for sizes in stages]
    return UpdateTime(
        reduction=max(_seconds_between(layout, sent, count) for sent, count in zip(traffic.reduction, counts)),
        optimizer=max(_optimizer_seconds(config, layout, sizes) for sizes in stages),
        sharing=max(_sharing_seconds(layout, sent, sizes) for sent, sizes in zip(traffic.sharing, stages)),
    )


def ring_rate(layout: Layout) -> Optional[float]:
    """Bytes/s that each device sends in a ring over the replicas of a stage: that of the slowest link on it.

    Between hosts each device has an adapter of its own; the devices of a host that are in the ring use theirs side by side.
    """
    device, groups = layout.machine.device, layout.placement.replica_groups
    if layout.hosts == 1 or device.link is None or device.host_link is None:
        return device.link if layout.hosts == 1 else device.host_link
    return min(device.link, max(1, groups // layout.hosts) * device.host_link)


def _seconds_between(layout: Layout, sent: int, count: int) -> float:
    """`sent`: bytes by each device, as in a ring; a message's way is as long as in a tree over the replicas and back."""
    rate, groups = ring_rate(layout), layout.placement.replica_groups
    if not sent or not rate:
        return 0.0
    messages = 1 if layout.on_ipu else math.ceil(count / MESSAGE)
    return sent / rate + messages * 2 * math.ceil(math.log2(groups)) * layout.machine.device.latency


def _sharing_seconds(layout: Layout, sent: int, sizes: Mapping[str, int]) -> float:
    """Each owner of a part broadcasts it, one after the other: `runtime/replicas.py`."""
    rate, groups = ring_rate(layout), layout.placement.replica_groups
    if not sent or not rate:
        return 0.0
    messages = 1 if layout.on_ipu else max(min(groups, len(sizes)), math.ceil(sum(sizes.values()) / MESSAGE))
    return sent / rate + messages * math.ceil(math.log2(groups)) * layout.machine.device.latency


def _trained_sizes(config: Config, layout: Layout, rank: int) -> Dict[str, int]:
    """Of a process of a replica group: parameter name -> how many numbers."""
    arch, placement = architecture_of(config), layout.placement
    units = [unit for index in placement.parts_of(rank) for unit in placement.parts[index].units]
    return {name: count for name, count in parameter_sizes(arch, units).items() if not is_frozen(name, config)}


def _optimizer_seconds(config: Config, layout: Layout, sizes: Mapping[str, int]) -> float:
    """What is moved in the device's memory, and state from and to memory off the chip; its arithmetic is hidden behind that."""
    placement, device = layout.placement, layout.machine.device
    shards = placement.replica_groups if is_sharded(config, layout) else 1
    kept = weight_memory(config, sizes, shards, layout.on_ipu)
    # The gradient is read for its norm, read for the step and cleared; weights and state are read and written.
    moved = 3 * kept.gradients + 2 * (kept.weights // shards + kept.state) + 2 * kept.average
    if placement.replica_groups > 1 and not layout.on_ipu:
        moved += COPIES * sum(sizes.values())
    seconds = moved / device.memory_rate if device.memory_rate else 0.0
    return seconds + (2 * kept.offchip / device.streaming if device.streaming else 0.0)
