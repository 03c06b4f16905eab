"""Who computes which micro-batch when: the order of each schedule, and a simulator that gives it times. Deterministic.

gpipe (arXiv 1811.06965), 1f1b (arXiv 1806.03377) and interleaved (arXiv 2104.04473) as `torch.distributed.pipelining` orders
them; `lockstep` as PopART does: in every cycle each stage makes one forward and one backward pass, and all wait for the slowest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

FORWARD, BACKWARD = "F", "B"


class Action(NamedTuple):
    """A micro-batch's pass through a part of the model."""

    kind: str  # F or B
    part: int
    micro_batch: int


@dataclass(frozen=True)
class Event:
    """An action with its times; process i holds the parts i, i + p, i + 2 p, ..."""

    process: int
    action: Action
    start: float
    end: float


def orders_of(schedule: str, num_processes: int, num_parts: int, micro_batches: int) -> List[List[Action]]:
    """What each process does in a weight update, in order; `forward` is an evaluation."""
    if schedule == "interleaved":
        return [_interleaved(rank, num_processes, num_parts, micro_batches) for rank in range(num_processes)]
    assert num_parts == num_processes, "several parts a process are interleaved's"
    orders = []
    for stage in range(num_processes):
        forwards = [Action(FORWARD, stage, number) for number in range(micro_batches)]
        backwards = [Action(BACKWARD, stage, number) for number in range(micro_batches)]
        if schedule == "forward":
            orders.append(forwards)
        elif schedule == "gpipe":
            orders.append(forwards + backwards)
        else:
            assert schedule == "1f1b", schedule
            orders.append(_in_turn(forwards, backwards, min(num_processes - stage, micro_batches) - 1))
    return orders


def _in_turn(forwards: List[Action], backwards: List[Action], warm_up: int) -> List[Action]:
    """`warm_up` forwards, then one forward and one backward in turn, then the backwards that are left."""
    order = forwards[:warm_up]
    for ahead, behind in zip(forwards[warm_up:], backwards):
        order += [ahead, behind]
    return order + backwards[len(forwards) - warm_up :]


def _interleaved(rank: int, num_processes: int, num_parts: int, micro_batches: int) -> List[Action]:
    chunks = num_parts // num_processes
    in_round = micro_batches // max(1, micro_batches // num_processes)
    forwards, backwards = [], []
    for number in range(chunks * micro_batches):
        turn, place = divmod(number, in_round)
        chunk, micro_batch = turn % chunks, turn // chunks * in_round + place
        forwards.append(Action(FORWARD, chunk * num_processes + rank, micro_batch))
        backwards.append(Action(BACKWARD, (chunks - 1 - chunk) * num_processes + rank, micro_batch))
    warm_up = min((chunks - 1) * in_round + 2 * (num_processes - 1 - rank), len(forwards))
    return _in_turn(forwards, backwards, warm_up)


def simulate(orders: Sequence[Sequence[Action]], forward: Sequence[float], backward: Sequence[float]) -> List[Event]:
    """Every action as soon as its process is free and what it needs is there. `forward`, `backward`: seconds of each part."""
    last = len(forward) - 1
    ends: Dict[Tuple[str, int, int], float] = {}
    free = [0.0] * len(orders)
    position = [0] * len(orders)
    events: List[Event] = []
    total = sum(map(len, orders))
    while len(events) < total:
        before = len(events)
        for process, order in enumerate(orders):
            while position[process] < len(order):
                action = order[position[process]]
                need = _needed(action, last)
                if need is not None and need not in ends:
                    break
                start = free[process] if need is None else max(free[process], ends[need])
                end = start + (forward if action.kind == FORWARD else backward)[action.part]
                ends[action] = free[process] = end
                position[process] += 1
                events.append(Event(process, action, start, end))
        assert len(events) > before, "a schedule that waits for itself"
    return events


def simulate_shared(
    orders: Sequence[Sequence[Action]], forward: Sequence[float], backward: Sequence[float], cores: float
) -> List[Event]:
    """As `simulate`, where processes that are at work share fewer cores: n of them go on at cores / n of their speed.

    `cores` may be a fraction: what is there for one of several replica groups, which do the same at the same time.
    """
    last = len(forward) - 1
    position = [0] * len(orders)
    left: Dict[int, float] = {}  # seconds on a core of its own that a process's action still needs
    starts: Dict[int, float] = {}
    done: Set[Tuple[str, int, int]] = set()
    events: List[Event] = []
    now, total = 0.0, sum(map(len, orders))
    while len(events) < total:
        for process, order in enumerate(orders):
            if process not in left and position[process] < len(order):
                action = order[position[process]]
                need = _needed(action, last)
                if need is None or need in done:
                    left[process] = (forward if action.kind == FORWARD else backward)[action.part]
                    starts[process] = now
        assert left, "a schedule that waits for itself"
        speed = min(1.0, cores / len(left))
        shortest = min(left.values())
        now += shortest / speed
        for process in sorted(left):
            left[process] -= shortest
            if left[process] <= 0:
                action = orders[process][position[process]]
                events.append(Event(process, action, starts[process], now))
                done.add(action)
                position[process] += 1
        left = {process: seconds for process, seconds in left.items() if seconds > 0}
    return events


def simulate_lockstep(forward: Sequence[float], backward: Sequence[float], micro_batches: int) -> List[Event]:
    """PopART's pipeline: stage s takes micro-batch c - s forward and c - (2 S - 2 - s) back in cycle c."""
    size = len(forward)
    events: List[Event] = []
    time = 0.0
    for cycle in range(micro_batches + 2 * size - 2):
        end_of_cycle = time
        for stage in range(size):
            start = time
            passes = ((FORWARD, cycle - stage, forward), (BACKWARD, cycle - (2 * size - 2 - stage), backward))
            for kind, number, seconds in passes:
                if 0 <= number < micro_batches and seconds[stage] > 0:
                    end = start + seconds[stage]
                    events.append(Event(stage, Action(kind, stage, number), start, end))
                    start = end
            end_of_cycle = max(end_of_cycle, start)
        time = end_of_cycle
    return events


def _needed(action: Action, last: int) -> Optional[Tuple[str, int, int]]:
    kind, part, number = action
    if kind == FORWARD:
        return (FORWARD, part - 1, number) if part else None
    return (BACKWARD, part + 1, number) if part < last else (FORWARD, part, number)


def makespan(events: Sequence[Event]) -> float:
    return max(event.end for event in events)


def idle_share(events: Sequence[Event], num_processes: int) -> float:
    """Share of all processes' time in which they have nothing to do: the bubble, and the wait for slower stages."""
    busy = sum(event.end - event.start for event in events)
    return max(0.0, 1.0 - busy / (num_processes * makespan(events)))


def bubble(num_processes: int, micro_batches: int, chunks: int = 1) -> float:
    """The same for equal stages: (p - 1) / (v m + p - 1), with v parts a process."""
    return (num_processes - 1) / (chunks * micro_batches + num_processes - 1)


def most_in_flight(order: Sequence[Action], bytes_of_part: Sequence[int]) -> Tuple[int, int]:
    """(actions, bytes) that wait for their backward pass at most, where each part keeps so many bytes of a micro-batch."""
    count = held = most_count = most_held = 0
    for action in order:
        step = 1 if action.kind == FORWARD else -1
        count, held = count + step, held + step * bytes_of_part[action.part]
        most_count, most_held = max(most_count, count), max(most_held, held)
    return most_count, most_held
