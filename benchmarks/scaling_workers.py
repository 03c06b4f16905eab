"""Processes that measure what `scaling.py` compares: host steps and their pieces, and what two processes send each other."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple

import torch

from benchmarks.workers import Order, Workers
from runtime.base import Trace

REDUCED, MOVED = 2**22, 2**22  # float32 numbers: 16 MiB, about the gradients and the weights of the models measured
REPEATS = 7


class Links(NamedTuple):
    """Between and in two processes that are busy at once."""

    latency: float  # seconds of a message of one number to the other process
    rate: float  # bytes/s that each sends in an all-reduce, latency left out
    memory_rate: float  # bytes/s that each reads and writes where it adds large tensors


def links_between(workers: Workers) -> Links:
    """Of this machine, as two processes that train at once would find it. `workers`: two of `exchange`."""
    workers.start(True)
    small, large, moving = (max(pair) for pair in zip(*workers.answers()))
    # An all-reduce over two is a message there and one back; each sends all of its bytes once.
    return Links(small / 2, 4 * REDUCED / (large - small), 12 * MOVED / moving)


def exchange(pipe: Any) -> None:
    """Body of a process that measures its links to another."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    torch.set_num_threads(1)
    one, many = torch.zeros(1), torch.zeros(REDUCED)
    x, y = torch.zeros(MOVED), torch.ones(MOVED)
    for _ in iter(pipe.recv, None):
        turns = (lambda: dist.all_reduce(one), lambda: dist.all_reduce(many), lambda: x.add_(y))
        pipe.send(tuple(_typical_seconds(turn, dist.barrier) for turn in turns))
    dist.barrier()
    dist.destroy_process_group()


def _typical_seconds(turn: Callable[[], Any], together: Callable[[], Any]) -> float:
    """Median over some turns, which all processes begin at once."""
    durations = []
    for _ in range(REPEATS):
        together()
        begun = time.perf_counter()
        turn()
        durations.append(time.perf_counter() - begun)
    return sorted(durations)[REPEATS // 2]


Timed = Tuple[float, List[Trace]]


def measure(groups: Sequence[Workers], steps: int) -> Timed:
    """Seconds of a host step of the slowest process, all groups working at once, and the traces of the first group."""
    for workers in groups:
        workers.start(Order(steps, is_traced=True))
    answers = [workers.answers() for workers in groups]
    seconds = max(step.seconds for steps_of_group in answers for step in steps_of_group)
    return seconds, [step.trace for step in answers[0] if step.trace is not None]
