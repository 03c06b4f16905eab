"""Bytes of a stage's weights, gradients and optimiser state, by precision, optimiser and sharding.

On torch runtimes to the byte (the tests compare); on IPUs by the same rules, which are PopTorch's as far as they are documented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Mapping

from models.freezing import is_frozen
from planning.parameters import is_block_matrix

if TYPE_CHECKING:
    from config import Config

WITH_TWO_MOMENTS = ("Adam", "AdamW", "LAMB")
STEP_COUNTER = 4  # bytes, one for each parameter with two moments
SMALLEST_SHARDED = 8192  # numbers; PopART leaves smaller tensors whole


@dataclass(frozen=True)
class NumberSizes:
    """Bytes of one number."""

    weight: int
    gradient: int  # of the accumulators over micro-batches
    first_order: int
    second_order: int


@dataclass(frozen=True)
class WeightMemory:
    """Bytes that live from one weight update to the next."""

    weights: int
    gradients: int
    state: int  # of the optimiser, on the device
    offchip: int = 0  # of the optimiser, in an IPU's streaming memory
    average: int = 0  # of ema_decay

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.gradients + self.state + self.average


def number_sizes(config: Config) -> NumberSizes:
    """As `runtime/precision.py` chooses types."""
    half = {"fp16": 2 if config.stores_16_bits else 4, "fp32": 4}
    return NumberSizes(
        weight=2 if config.precision.endswith(".16") else 4,
        gradient=half[config.accum_type],
        first_order=half[config.first_order_type],
        second_order=half[config.second_order_type],
    )


def weight_memory(config: Config, sizes: Mapping[str, int], shards: int, on_ipu: bool) -> WeightMemory:
    """For the parameters `sizes` of one device; the optimiser's state is shared by `shards` replicas: the fullest counts.

    What is not trained has weights alone.
    """
    number = number_sizes(config)
    count = sum(sizes.values())
    if not config.trains:
        return WeightMemory(count * number.weight, 0, 0)
    trained = {name: size for name, size in sizes.items() if not is_frozen(name, config)}
    state = {name: state_bytes(config, number, name, size) for name, size in trained.items()}
    shards = shards if config.enable_rts and not config.combines_accumulators else 1
    kept = _fullest_share(state, trained, shards, on_ipu)
    is_offchip = on_ipu and config.optimizer_state_offchip
    return WeightMemory(
        weights=count * number.weight,
        gradients=sum(trained.values()) * number.gradient,  # with combined accumulators, also the velocity
        state=0 if is_offchip else kept,
        offchip=kept if is_offchip else 0,
        average=sum(trained.values()) * 4 if config.ema_decay and not on_ipu else 0,
    )


def state_bytes(config: Config, number: NumberSizes, name: str, size: int) -> int:
    """Bytes of the optimiser's state of one parameter."""
    if config.optimizer == "SGD":
        return 0 if config.combines_accumulators or not config.momentum else size * number.first_order
    if config.optimizer == "Lion" or (config.optimizer == "Muon" and is_block_matrix(name)):
        return size * number.first_order
    assert config.optimizer in (*WITH_TWO_MOMENTS, "Muon")
    return size * (number.first_order + number.second_order) + STEP_COUNTER


def _fullest_share(state: Mapping[str, int], sizes: Mapping[str, int], shards: int, on_ipu: bool) -> int:
    if on_ipu:  # every large tensor is cut into equal parts
        return sum(
            -(-number // shards) if sizes[name] >= SMALLEST_SHARDED else number for name, number in state.items()
        )
    # Whole parameters, the largest first, each to the replica with the least so far: `runtime/replicas.py`.
    load = [0] * shards
    owned: Dict[int, int] = dict.fromkeys(range(shards), 0)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owner = load.index(min(load))
        load[owner] += sizes[name]
        owned[owner] += state[name]
    return max(owned.values())
