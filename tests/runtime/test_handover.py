"""What stages of one host hand over arrives as it was, is never overwritten too early, and a lost neighbour is noticed."""

from __future__ import annotations

import random
import time
from typing import Any, List, Tuple

import pytest
import torch

from planning.schedule import BACKWARD, FORWARD, orders_of, simulate
from runtime.handover import Boundary, Handover, NeighbourLostError, open_handovers, slots_needed
from tests.processes import run_processes

NUM_MICRO_BATCHES, NUM_SLOTS = 7, 3


def open_end(rank: int, timeout: float = 30.0) -> Handover:
    """One process's end of a boundary between two, which any means of gathering sets up."""
    import torch.distributed as dist

    def gather(value: Any) -> List[Any]:
        values: List[Any] = [None, None]
        dist.all_gather_object(values, value)
        return values

    dist.init_process_group("gloo")
    boundary = Boundary(0, ranks=(0, 1), tokens=torch.empty(2, 5, 3), sends_back=True, num_slots=NUM_SLOTS)
    return open_handovers([boundary], rank, gather, timeout)[0]


def value_of(number: int) -> torch.Tensor:
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(number))


def send_and_return(rank: int) -> List[torch.Tensor]:
    """Rank 0 sends values, rank 1 returns them doubled; at most `NUM_SLOTS` are on their way. What each has received."""
    end, received = open_end(rank), []
    if rank == 0:
        for number in range(NUM_SLOTS):
            end.put(number, value_of(number))
        for number in range(NUM_MICRO_BATCHES):
            received.append(end.take(number).clone())
            if number + NUM_SLOTS < NUM_MICRO_BATCHES:
                end.put(number + NUM_SLOTS, value_of(number + NUM_SLOTS))
    else:
        for number in range(NUM_MICRO_BATCHES):
            tokens = end.take(number).requires_grad_()
            received.append(tokens.detach().clone())
            (gradient,) = torch.autograd.grad(tokens.square().sum(), tokens)
            end.put(number, gradient)
    return received


@pytest.mark.pipeline
def test_tokens_and_gradients_arrive_as_they_were_sent() -> None:
    returned, received = run_processes(2, send_and_return)
    for number in range(NUM_MICRO_BATCHES):
        assert torch.equal(received[number], value_of(number))
        assert torch.equal(returned[number], 2 * value_of(number))


def lose_a_neighbour(rank: int, timeout: float) -> Tuple[str, float]:
    """Rank 1 ends without a word, or hangs until its time is over: what rank 0 hears, and after how long."""
    end = open_end(rank, timeout)
    begin = time.monotonic()
    if rank == 1:
        if timeout < 5:
            time.sleep(2 * timeout)
        return "", 0.0
    with pytest.raises(NeighbourLostError) as error:
        end.take(0)
    return str(error.value), time.monotonic() - begin


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("timeout", "message"), [(60.0, "stage 1 (rank 1) is gone"), (1.0, "has sent nothing for 1 s")]
)
def test_a_neighbour_that_ends_or_hangs_is_named(timeout: float, message: str) -> None:
    (heard, seconds), _ = run_processes(2, lose_a_neighbour, timeout)
    assert message in heard
    assert seconds < 10


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("num_parts", [2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 5, 12])
def test_no_slot_is_written_while_it_is_read(schedule: str, num_parts: int, micro_batches: int) -> None:
    """Whatever the passes take: who writes a slot again has heard of something that came after its last use."""
    draw = random.Random(num_parts * micro_batches)
    orders = orders_of(schedule, num_parts, num_parts, micro_batches)
    for _ in range(20):
        forward, backward = ([draw.choice([0.01, 1.0, 100.0]) for _ in range(num_parts)] for _ in range(2))
        ends = {event.action: event.end for event in simulate(orders, forward, backward)}
        for part in range(num_parts - 1):
            slots = slots_needed(schedule, num_parts, part, micro_batches, sends_back=True)
            for old in range(micro_batches - slots):
                # Tokens are read until the backward pass behind the boundary, gradients in the one before it.
                assert ends[FORWARD, part, old + slots] >= ends[BACKWARD, part + 1, old]
                assert ends[BACKWARD, part + 1, old + slots] >= ends[BACKWARD, part, old]
