"""Runs a command: decides where, starts local worker processes when the plan needs several, and turns errors into messages.

Under a launcher a command is one of its processes and starts none: `torchrun` sets WORLD_SIZE, for `poprun` PopDist is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from multiprocessing import connection, forkserver, get_context, resource_tracker
from typing import Any, Callable, Dict, List, Optional, Sequence

from errors import SharedError, UserError
from machine import is_first_of_host, world_size
from placement import Placement, check_can_run, follow_launcher, place

GRACE_SECONDS = 3.0  # how long the other workers may take to end by themselves after one has failed
OBEY_SECONDS = 10.0  # how long the others may take to end after one has obeyed a signal, or after a second signal
EXIT_USER_ERROR = 2
# What each worker would else import by itself. The server leaves out without a word what cannot be imported.
PRELOADED = ("errors", "launch", "config", "run_setup", "publishing.hugging_face", "runtime.pipeline")
PORTS = 15_000, 32_000  # outgoing connections have those from 32,768 on, on Linux
NOT_FOR_THE_SERVER = {signal.SIGINT, signal.SIGTERM}


def run(command: str, main: Callable[[Optional[Sequence[str]]], int], argv: Optional[Sequence[str]] = None) -> int:
    """Runs `main(argv)` of a training or validation command here, or in as many local workers as its plan asks for.

    Returns the exit code: 0, 1 after a crash, 2 for a user's mistake, 130 or 143 after Ctrl-C or SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(command, main, argv), debug="--debug" in argv)


def _check_environment() -> None:
    """Raises UserError where this Python lacks what the commands need: the usual cause is an environment not activated."""
    missing = [name for name in ("yaml", "pydantic", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"this Python ({sys.executable}) has no {missing[0]}.\n"
            "       Use the project's: `make setup` once, then `source .venv/bin/activate` (or type .venv/bin/python for python)."
        )


def guarded(action: Callable[[], int], debug: bool = False) -> int:
    """Calls `action`; a UserError becomes one message and exit code 2."""
    try:
        _check_environment()
        return action()
    except UserError as error:
        if debug:
            traceback.print_exc()
        if is_first_of_host() or not isinstance(error, SharedError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(command: str, main: Callable[[Optional[Sequence[str]]], int], argv: List[str]) -> int:
    from config import load_config

    try:
        config = follow_launcher(load_config(command, argv))
        placement = place(config)
        if not config.compile_only:
            check_can_run(placement)
    except UserError as error:
        raise SharedError(str(error)) from error  # all processes of a host read the same files
    if placement.num_processes == 1 or world_size() is not None or config.compile_only:
        return main(argv)
    return run_workers(command, argv, placement, config.threads_per_process or 1, config.debug)


def run_workers(command: str, argv: List[str], placement: Placement, threads: int, debug: bool = False) -> int:
    """Starts one local process a rank, waits for all, and ends the rest when one fails. Returns the run's exit code.

    Workers are forked from a clean server process that has imported once what they need, so that four start as fast as one.
    """
    num_workers = placement.num_processes
    shared = {
        "WORLD_SIZE": str(num_workers),
        "LOCAL_WORLD_SIZE": str(num_workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
    }
    os.environ.update({name: value for name, value in shared.items() if name.endswith("_NUM_THREADS")})
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    _start_server()
    workers: List[Any] = []
    pipes: List[Any] = []
    try:
        for index in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            environment = {**shared, "RANK": str(index), "LOCAL_RANK": str(index)}
            worker = context.Process(target=_worker, args=(command, argv, environment, sender), name=f"rank {index}")
            worker.start()
            sender.close()
            workers.append(worker)
            pipes.append(receiver)
    except BaseException:
        for worker in workers:  # they would wait for those that never came
            worker.kill()
        raise
    return _Crew(workers, pipes, placement, debug).wait()


def _start_server() -> None:
    """Starts the process that forks workers, deaf to SIGTERM: a scheduler sends it to all, and workers need their parent.

    To SIGINT as well, which Ctrl-C sends to all: torch passes over what interrupts its import of numpy, and workers would have
    half a numpy.
    """
    resource_tracker.ensure_running()  # which would unblock the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_THE_SERVER)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def free_port() -> int:
    """A port that nothing uses. It lies below those that systems give to outgoing connections, one of which might else take it
    in the seconds until the workers listen.
    """
    draw = random.SystemRandom()  # not the run's numbers: two runs of one seed may start at once
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", draw.randrange(*PORTS)))
            return int(probe.getsockname()[1])


def _worker(command: str, argv: List[str], environment: Dict[str, str], reports: Any) -> None:
    """Body of one local worker: runs the command and reports how it failed, if it did, before its connections close."""
    os.environ.update(environment)
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the starting process alone, which passes it on, once
    _die_with_parent()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_THE_SERVER)
        code = importlib.import_module(command).main(argv)
    except UserError as error:
        code = EXIT_USER_ERROR
        reports.send((time.time(), code, str(error), traceback.format_exc()))
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException as error:
        code = 1
        reports.send((time.time(), code, f"{type(error).__name__}: {error}", traceback.format_exc()))
    sys.stdout.flush()
    sys.exit(code)


def _die_with_parent() -> None:
    """Ends this worker when the process that started it is gone, even by SIGKILL."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Crew:
    """The local workers of one run, seen from the process that started them."""

    def __init__(self, workers: List[Any], pipes: List[Any], placement: Placement, debug: bool) -> None:
        self.workers, self.pipes = workers, pipes
        self.placement, self.debug = placement, debug
        self.reports: Dict[int, Any] = {}
        self.forwarded = 0  # the last signal that was passed on
        self.deadline: Optional[float] = None  # when workers that have not obeyed it are ended
        self.died: List[int] = []  # workers that a signal ended before we ended the rest

    def wait(self) -> int:
        """Waits for the end; forwards SIGINT and SIGTERM, which make the workers finish their step, save and exit."""
        previous = {number: signal.signal(number, self._forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            failed = self._first_failure()
            if failed is None:
                self._kill_and_join()  # none is left, but for those past the deadline
                codes = [worker.exitcode for worker in self.workers]
                return 128 + self.forwarded if min(codes) < 0 else max(codes)
            self._end_the_rest()
            return self._explain(failed)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: Any) -> None:
        if self.forwarded:
            self._set_deadline()  # told twice
        self.forwarded = number
        for worker in self.workers:
            if worker.is_alive():
                os.kill(worker.pid, number)

    def _first_failure(self) -> Optional[int]:
        """Index of a worker that failed, or None when all ended well (0, or after a signal that all obeyed)."""
        alive = dict(enumerate(self.workers))
        while alive:
            # A signal's handler may set the deadline during the wait: look once a second.
            rest = 1.0 if self.deadline is None else self.deadline - time.monotonic()
            if rest <= 0:
                return None
            connection.wait([worker.sentinel for worker in alive.values()] + self._open_pipes(), timeout=rest)
            self._collect_reports()
            for index in [index for index, worker in alive.items() if not worker.is_alive()]:
                code = alive.pop(index).exitcode
                # A worker that was still setting up ends by the signal itself.
                obeyed = self.forwarded and code == -self.forwarded
                if not obeyed and code not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
                    return index
                if self.forwarded:
                    # One that still waits for others to join does not hear the signal. In training all end together.
                    self._set_deadline()
        return None

    def _set_deadline(self) -> None:
        self.deadline = self.deadline or time.monotonic() + OBEY_SECONDS

    def _open_pipes(self) -> List[Any]:
        return [pipe for pipe in self.pipes if not pipe.closed]

    def _collect_reports(self) -> None:
        for index, pipe in enumerate(self.pipes):
            try:
                while not pipe.closed and pipe.poll():
                    self.reports[index] = pipe.recv()
            except EOFError:
                pipe.close()

    def _end_the_rest(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._collect_reports()
        # One that has reported an error and crashes on its way out (torch's store may, in rank 0) is not the first.
        self.died = [i for i, worker in enumerate(self.workers) if (worker.exitcode or 0) < 0 and i not in self.reports]
        self._kill_and_join()

    def _kill_and_join(self) -> None:
        for worker in self.workers:
            if worker.is_alive():
                worker.kill()
        for worker in self.workers:
            worker.join()

    def _explain(self, failed: int) -> int:
        """Prints what happened to the worker that failed first: the others' errors only follow from it."""
        if self.died:
            failed = failed if failed in self.died else self.died[0]
        elif self.reports:
            failed = min(self.reports, key=lambda index: self.reports[index][0])
        report = self.reports.get(failed)
        who = self._describe(failed)
        if report is None:
            code = self.workers[failed].exitcode
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            print(f"error: {who} {how}; the other processes were stopped.", file=sys.stderr, flush=True)
            return 1
        _, code, message, trace = report
        if code == EXIT_USER_ERROR and not self.debug:
            print(f"error: {message}", file=sys.stderr, flush=True)
        else:
            print(f"{trace}error: {who} failed: {message}", file=sys.stderr, flush=True)
        return int(code)

    def _describe(self, index: int) -> str:
        return f"rank {index}, {self.placement.describe(index)}, process {self.workers[index].pid},"
