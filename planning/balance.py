"""The `layers_per_ipu` with the smallest slowest stage, of all ways to cut the blocks; embedding and head count, too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Callable, Iterator, List, Optional, Sequence, Tuple

from models.stages import Stage
from planning.layout import Layout, layout_on
from planning.machines import Machine
from planning.stage_memory import stage_memories
from planning.throughput import Prediction, predict, seconds_of

if TYPE_CHECKING:
    from config import Config

Layers = Tuple[int, ...]
MOST_COMPARED = 200  # splits that are equally fast, of which the memory is compared


@dataclass(frozen=True)
class Split:
    """One way to cut the model."""

    layers: Layers
    layout: Layout
    prediction: Prediction

    @property
    def slowest(self) -> float:
        """Seconds of a micro-batch in the slowest stage, forward and back."""
        return max(ahead + back for ahead, back in zip(self.prediction.forward, self.prediction.backward))


Costs = Callable[[int, int, int], float]  # (stage, first block, number of blocks) -> seconds of a micro-batch


def balance(config: Config, machine: Machine, hosts: Optional[int]) -> Tuple[Split, Split]:
    """(as the config has it, the best). The number of stages stays; of equally fast splits, the most even memory wins."""
    before = _split(config, machine, hosts, config.stage_layers)
    stages, depth = len(config.stage_layers), config.num_hidden_layers

    @lru_cache(maxsize=None)
    def costs(stage: int, first: int, count: int) -> float:
        units = [f"block {index}" for index in range(first, first + count)]
        units = ["embed"] * (stage == 0) + units + ["head"] * (stage == stages - 1)
        return sum(seconds_of(config, before.layout, Stage(stage, tuple(units))))

    limit = smallest_slowest(costs, stages, depth)
    tied = list(islice(compositions(costs, stages, depth, limit * (1 + 1e-9)), MOST_COMPARED))
    best = min(tied, key=lambda layers: (_largest_memory(config, machine, hosts, layers), layers))
    after = _split(config, machine, hosts, best)
    return before, (after if after.slowest < before.slowest * (1 - 1e-9) else before)


def _split(config: Config, machine: Machine, hosts: Optional[int], layers: Layers) -> Split:
    changed = config.model_copy(update={"layers_per_ipu": layers, "ipus_per_replica": len(layers)})
    layout = layout_on(changed, machine, hosts)
    return Split(layers, layout, predict(changed, layout))


def _largest_memory(config: Config, machine: Machine, hosts: Optional[int], layers: Layers) -> int:
    changed = config.model_copy(update={"layers_per_ipu": layers, "ipus_per_replica": len(layers)})
    return max(memory.total for memory in stage_memories(changed, layout_on(changed, machine, hosts)))


def smallest_slowest(costs: Costs, stages: int, depth: int) -> float:
    """The least that the slowest stage can cost; by dynamic programming over (stages left, blocks placed)."""

    @lru_cache(maxsize=None)
    def best(stage: int, first: int) -> float:
        if stage == stages - 1:
            return costs(stage, first, depth - first)
        return min(
            max(costs(stage, first, count), best(stage + 1, first + count))
            for count in counts_of(stage, first, stages, depth)
        )

    return best(0, 0)


def counts_of(stage: int, first: int, stages: int, depth: int) -> Sequence[int]:
    """How many blocks a stage but the last may get: those at the ends may be empty, those between may not."""
    needed_after = max(0, stages - stage - 2)  # by the stages between it and the last
    return range(0 if stage == 0 else 1, depth - first - needed_after + 1)


def compositions(costs: Costs, stages: int, depth: int, limit: float) -> Iterator[Layers]:
    """All splits of which no stage costs more than `limit`."""

    @lru_cache(maxsize=None)
    def fits(stage: int, first: int) -> bool:
        return any(True for _ in options(stage, first))

    def options(stage: int, first: int) -> List[int]:
        if stage == stages - 1:
            return [depth - first] if costs(stage, first, depth - first) <= limit else []
        return [
            count
            for count in counts_of(stage, first, stages, depth)
            if costs(stage, first, count) <= limit and fits(stage + 1, first + count)
        ]

    def extend(placed: Layers, first: int) -> Iterator[Layers]:
        for count in options(len(placed), first):
            layers = (*placed, count)
            if len(layers) == stages:
                yield layers
            else:
                yield from extend(layers, first + count)

    return extend((), 0)
