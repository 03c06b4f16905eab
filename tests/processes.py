"""Runs a function in several processes at once, as ranks of one world, and shows the traceback of one that fails."""

from __future__ import annotations

import os
import pickle
import traceback
from multiprocessing import connection, get_context
from typing import Any, Callable, List

from launch import free_port

TIMEOUT_SECONDS = 120

_context = get_context("forkserver")
_context.set_forkserver_preload(["runtime.pipeline", "config", "numpy"])


def run_processes(world_size: int, function: Callable[..., Any], *arguments: Any) -> List[Any]:
    """Results of `function(rank, *arguments)` of every rank. Fails with the traceback of the first rank that raises."""
    port = str(free_port())
    workers, pipes = [], []
    for rank in range(world_size):
        receiver, sender = _context.Pipe(duplex=False)
        worker = _context.Process(target=_work, args=(rank, world_size, port, sender, function, arguments))
        worker.start()
        sender.close()
        workers.append(worker)
        pipes.append(receiver)
    try:
        return _results(pipes)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _results(pipes: List[Any]) -> List[Any]:
    results: List[Any] = [None] * len(pipes)
    waiting = dict(enumerate(pipes))
    while waiting:
        ready = connection.wait(list(waiting.values()), TIMEOUT_SECONDS)
        assert ready, f"no answer from ranks {sorted(waiting)} within {TIMEOUT_SECONDS} s"
        for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
            try:
                failed, result = pickle.loads(waiting.pop(rank).recv_bytes())
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            assert not failed, f"rank {rank} failed:\n{result}"
            results[rank] = result
    return results


def _work(rank: int, world_size: int, port: str, answer: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    try:
        answer.send_bytes(_packed(False, function(rank, *arguments)))
    except BaseException:
        answer.send_bytes(_packed(True, traceback.format_exc()))


def _packed(failed: bool, result: Any) -> bytes:
    # Not `send`: torch would pass tensors as file descriptors, which are gone with this process.
    return pickle.dumps((failed, result))
