"""Bytes that devices send each other: tokens and their gradients between stages, gradients and weights between replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List

from models.architecture import architecture_of
from models.freezing import frozen_units, is_frozen
from planning.activations import Kept, boundary_bytes, kept_on
from planning.layout import Layout
from planning.memory import number_sizes
from planning.parameters import parameter_sizes

if TYPE_CHECKING:
    from config import Config


@dataclass(frozen=True)
class Traffic:
    """Bytes, each way of a link counted by itself."""

    boundaries: List[int]  # tokens of a micro-batch from each part to the next
    returned: List[int]  # gradients of them: as much, but nothing to parts that have nothing to train up to there
    per_update: int  # between the stages of one replica group, forward and back
    reduction: List[int]  # gradients that each process sends to its replicas in an update
    sharing: List[int]  # weights that it sends them after it, with sharded optimiser state


def traffic_of(config: Config, layout: Layout) -> Traffic:
    arch, placement = architecture_of(config), layout.placement
    kept: Kept = kept_on(layout.machine.device.kind, config, arch)
    boundaries = [config.micro_batch_size * boundary_bytes(arch, kept, part) for part in placement.parts[:-1]]
    micro_batches = config.gradient_accumulation * placement.folded_replicas
    frozen = frozen_units(config)
    returned = [
        0 if not config.trains or set(part.units) <= set(frozen) else boundary
        for part, boundary in zip(placement.parts, boundaries)
    ]
    reduction, sharing = [], []
    for rank in range(placement.pipeline_size):
        units = [unit for index in placement.parts_of(rank) for unit in placement.parts[index].units]
        count = sum(size for name, size in parameter_sizes(arch, units).items() if not is_frozen(name, config))
        reduction.append(_reduction(config, layout, count))
        sharing.append(_sharing(config, layout, count))
    return Traffic(boundaries, returned, micro_batches * (sum(boundaries) + sum(returned)), reduction, sharing)


def _reduction(config: Config, layout: Layout, count: int) -> int:
    """An all-reduce over R sends 2 (R - 1) / R of the bytes; a reduce-scatter half of that."""
    groups = layout.placement.replica_groups
    if groups == 1 or not config.trains:
        return 0
    if not layout.on_ipu:  # float32, whatever the accumulators are: `runtime/replicas.py`
        return 2 * (groups - 1) * 4 * count // groups
    passes = 1 if is_sharded(config, layout) else 2
    return passes * (groups - 1) * number_sizes(config).gradient * count // groups


def _sharing(config: Config, layout: Layout, count: int) -> int:
    """Every replica's share of the weights goes to all others: (R - 1) / R of the bytes in an all-gather."""
    groups = layout.placement.replica_groups
    if not is_sharded(config, layout):
        return 0
    return (groups - 1) * number_sizes(config).weight * count // groups


def is_sharded(config: Config, layout: Layout) -> bool:
    """Whether replicas share the optimiser's state."""
    return (
        config.trains and config.enable_rts and layout.placement.replica_groups > 1 and not config.combines_accumulators
    )
