"""Processes that measure what `scaling.py` compares: host steps and their pieces, and what two processes send each other."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from multiprocessing import get_context
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch

from benchmarks.facts import random_batch
from config import load_config
from launch import free_port
from placement import place
from runtime.base import Trace
from runtime.build import build_runtime

REDUCED, MOVED = 2**22, 2**22  # float32 numbers: 16 MiB, about the gradients and the weights of the models measured
REPEATS = 7


class Step(NamedTuple):
    """What a host step took in one process."""

    seconds: float
    trace: Optional[Trace]  # of the last one


class Links(NamedTuple):
    """Between and in two processes that are busy at once."""

    latency: float  # seconds of a message of one number to the other process
    rate: float  # bytes/s that each sends in an all-reduce, latency left out
    memory_rate: float  # bytes/s that each reads and writes where it adds large tensors


class Workers:
    """Processes of one thread each that have joined one world, idle until told to work."""

    def __init__(self, num_processes: int, body: Callable[..., None], *arguments: Any) -> None:
        # Read when the library is loaded: in the processes' common parent, before it imports torch.
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        context = get_context("forkserver")
        context.set_forkserver_preload(["runtime.pipeline", "config"])
        port = free_port()
        self._pipes, self._processes = [], []
        for rank in range(num_processes):
            ours, theirs = context.Pipe()
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
            process = context.Process(target=_enter, args=(body, world, theirs, *arguments), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def start(self, order: Any) -> None:
        for pipe in self._pipes:
            pipe.send(order)

    def answers(self) -> List[Any]:
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        self.start(None)
        for process in self._processes:
            process.join()


def run_steps(arguments: Sequence[str], pipe: Any) -> None:
    """Body of a runtime's process: gets a number of steps, answers with a `Step` of their mean; the last one is traced."""
    config = load_config("pretrain", list(arguments))
    runtime = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)
    update = 0
    for steps in iter(pipe.recv, None):
        begun = time.perf_counter()
        for number in range(steps):
            if number == steps - 1:
                runtime.trace_next_step()
            runtime.train_step(batch, 1e-3, update)
            update += config.device_iterations
        pipe.send(Step((time.perf_counter() - begun) / steps, runtime.trace()))
    runtime.close()


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


def _enter(body: Callable[..., None], world: Dict[str, int], pipe: Any, *arguments: Any) -> None:
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    body(*arguments, pipe)


Timed = Tuple[float, List[Trace]]


def measure(groups: Sequence[Workers], steps: int) -> Timed:
    """Seconds of a host step of the slowest process, all groups working at once, and the traces of the first group."""
    for workers in groups:
        workers.start(steps)
    answers = [workers.answers() for workers in groups]
    seconds = max(step.seconds for steps_of_group in answers for step in steps_of_group)
    return seconds, [step.trace for step in answers[0] if step.trace is not None]
