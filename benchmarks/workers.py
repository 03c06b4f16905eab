"""Processes of one thread each that benchmarks set to work in turns: a runtime's, or others that run a given body."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from benchmarks.facts import random_batch
from config import load_config
from launch import free_port
from placement import place
from runtime.base import Trace
from runtime.build import build_runtime


class Order(NamedTuple):
    """For `run_steps`."""

    steps: int
    is_traced: bool = False  # the last one


class Step(NamedTuple):
    """What host steps took in one process, in the mean."""

    seconds: float
    cpu_seconds: float
    trace: Optional[Trace]


class Workers:
    """Processes that have joined one world, idle until told to work."""

    def __init__(self, num_processes: int, body: Callable[..., None], *arguments: Any) -> None:
        """Each calls `body(*arguments, pipe)`, which reads orders and writes an answer to each, until the order is None."""
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


def runtime_workers(arguments: Sequence[str]) -> Workers:
    """The processes of the runtime that these flags of `pretrain.py` ask for; they take an `Order` and answer with a `Step`."""
    return Workers(place(load_config("pretrain", list(arguments))).num_processes, run_steps, arguments)


def run_steps(arguments: Sequence[str], pipe: Any) -> None:
    """Body of a runtime's process: its part of as many host steps as an `Order` says."""
    config = load_config("pretrain", list(arguments))
    runtime = build_runtime(config, place(config))
    batch = random_batch(config, runtime.share)
    update = 0
    for order in iter(pipe.recv, None):
        begun, cpu = time.perf_counter(), time.process_time()
        for number in range(order.steps):
            if order.is_traced and number == order.steps - 1:
                runtime.trace_next_step()
            runtime.train_step(batch, 1e-3, update)
            update += config.device_iterations
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        pipe.send(Step(seconds / order.steps, cpu / order.steps, runtime.trace()))
    runtime.close()


def _enter(body: Callable[..., None], world: Dict[str, int], pipe: Any, *arguments: Any) -> None:
    os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="127.0.0.1")
    body(*arguments, pipe)
