"""The process that starts local workers: what it does where they do not listen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import launch
from errors import SharedError, UserError
from placement import place_pipeline
from run_setup import _commands
from tests.small import small_config


def deaf(ready: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as one in a library's C++ wait
    ready.send(True)
    time.sleep(60)


def obedient(ready: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ready.send(True)
    time.sleep(60)


@pytest.mark.parametrize(("bodies", "signals"), [([deaf, obedient], 1), ([deaf, deaf], 2)])
def test_a_worker_that_does_not_hear_a_signal_is_ended(
    monkeypatch: pytest.MonkeyPatch, bodies: Any, signals: int
) -> None:
    monkeypatch.setattr(launch, "OBEY_SECONDS", 0.5)
    context = get_context("fork")
    workers, pipes = [], []
    for body in bodies:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=body, args=(sender,))
        worker.start()
        sender.close()
        assert receiver.recv()
        workers.append(worker)
        pipes.append(receiver)
    for number in range(signals):
        threading.Timer(0.2 + 0.2 * number, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    assert launch._Crew(workers, pipes, None, False).wait() == 128 + signal.SIGINT
    assert time.monotonic() - begun < 10
    assert not any(worker.is_alive() for worker in workers)


def test_the_server_of_workers_does_not_hear_what_is_sent_to_all() -> None:
    """Ctrl-C while it imports would leave every worker with half of numpy."""
    code = (
        "import launch\nfrom multiprocessing import forkserver\nlaunch._start_server()\n"
        "print(open(f'/proc/{forkserver._forkserver._forkserver_pid}/status').read())"
    )
    root = Path(launch.__file__).parent
    status = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    blocked = int(dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)["SigBlk"], 16)
    assert all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM))


@pytest.mark.parametrize(("error", "local_rank", "told"), [(SharedError, 0, 1), (SharedError, 1, 0), (UserError, 1, 1)])
def test_what_all_processes_have_to_say_one_of_a_host_says(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, error: Any, local_rank: int, told: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    def fail() -> int:
        raise error("no such thing")

    assert launch.guarded(fail) == 2
    assert capfd.readouterr().err.count("no such thing") == told


@pytest.mark.parametrize(("local", "over_hosts"), [("4", False), ("2", True)])
def test_a_run_over_hosts_goes_on_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, local: str, over_hosts: bool
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    validate, resume = _commands(small_config(tmp_path), Path("/my runs/one"))
    assert resume is not None
    assert validate is not None
    assert resume.endswith("--checkpoint-output-dir '/my runs/one' --resume")
    assert resume.startswith("on all hosts, as this run was started, with: --") == over_hosts
    assert "validation.py --config-file" in validate


@pytest.mark.pipeline
def test_stages_on_several_hosts_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from runtime.pipeline import _network_note

    placement = place_pipeline(small_config(tmp_path, layers_per_ipu=[1, 1, 1, 1]), 4, 0, 4)
    for here, said in (("1", "(1 process here)"), ("2", "(2 processes here)")):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        assert said in (_network_note(placement) or "")
