"""The watch over several hosts, with four processes that take themselves for two on each of two hosts."""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List

import pytest

from tests import warm

pytestmark = pytest.mark.slow  # each test starts four processes

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 3  # seconds without an answer, here
PATIENCE = 60  # seconds for what ends by itself, on a machine that has much else to do
MEMBER = f"""
import os, pathlib, pickle, sys, time
from runtime import heartbeat

heartbeat.IDLE_SECONDS, heartbeat.BEAT_SECONDS, heartbeat.BEATS = 1, 1, {LIMIT - 1}
heartbeat.GRACE_SECONDS = 1.0
folder, rank = pathlib.Path(sys.argv[1]), int(os.environ["RANK"])

def gather(value):
    (folder / f"{{rank}}.new").write_bytes(pickle.dumps((value.port, value)))
    os.replace(folder / f"{{rank}}.new", folder / f"{{rank}}.member")
    files = [folder / f"{{other}}.member" for other in range(4)]
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    return [pickle.loads(file.read_bytes())[1] for file in files]

watch = heartbeat.watch_hosts(rank, f"stage {{rank % 2}}", gather)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: Dict[int, subprocess.Popen[str]] = {}

    def start(self, *ranks: int) -> None:
        for rank in ranks:
            environment = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank % 2)}
            environment.update(MASTER_ADDR="127.0.0.1", GROUP_RANK=str(rank // 2), PYTHONPATH=str(ROOT))
            self.members[rank] = warm.Popen(
                [sys.executable, "-c", MEMBER, str(self.folder)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def wait_until_ready(self) -> None:
        for member in self.members.values():
            assert member.stdout is not None
            assert member.stdout.readline() == "ready\n"

    def tell(self, line: str, *ranks: int) -> None:
        """Lets members run a line of Python."""
        for rank in ranks:
            stdin = self.members[rank].stdin
            assert stdin is not None
            stdin.write(line + "\n")
            stdin.flush()

    def ended(self, *ranks: int) -> Dict[int, str]:
        """What members printed as errors; they have all ended, with code 1."""
        errors = {}
        for rank in ranks:
            assert self.members[rank].wait(timeout=PATIENCE) == 1
            errors[rank] = self.members[rank].stderr.read()  # type: ignore[union-attr]
        return errors

    def all_leave(self) -> None:
        self.tell("watch.leave(); sys.exit(0)", *self.members)
        self.have_left()

    def have_left(self) -> None:
        """All have ended, in order and in silence."""
        for member in self.members.values():
            assert member.wait(timeout=PATIENCE) == 0
            assert member.stderr is not None
            assert member.stderr.read() == ""


@pytest.fixture
def world(tmp_path: Path):
    world = World(tmp_path)
    yield world
    for member in world.members.values():
        member.kill()
        member.communicate()


@pytest.fixture
def running(world: World) -> World:
    world.start(0, 1, 2, 3)
    world.wait_until_ready()
    return world


def test_an_orderly_end_is_no_loss_whoever_goes_first(running: World) -> None:
    running.tell("watch.leave(); sys.exit(0)", 0, 2)
    time.sleep(0.5)
    assert [running.members[rank].poll() for rank in (1, 3)] == [None, None]
    running.tell("watch.leave(); sys.exit(0)", 1, 3)
    running.have_left()


@pytest.mark.parametrize("slow", ["time.sleep(2.5), tell(*what)", "tell(*what), time.sleep(2.5)"])
def test_one_that_is_slow_to_leave_is_not_lost_and_takes_none_for_lost(running: World, slow: str) -> None:
    running.tell(f"tell = watch._tell; watch._tell = lambda *what: ({slow})", 0, 2)
    running.tell("watch.leave(); sys.exit(0)", 0, 2)
    assert [running.members[rank].wait(timeout=PATIENCE) for rank in (0, 2)] == [0, 0]
    time.sleep(1.5)
    assert [running.members[rank].poll() for rank in (1, 3)] == [None, None]
    running.tell("watch.leave(); sys.exit(0)", 1, 3)
    running.have_left()


@pytest.mark.parametrize("killed", [0, 1, 2, 3])
def test_a_process_that_is_killed_ends_all_and_each_host_names_it_once(running: World, killed: int) -> None:
    begun = time.monotonic()
    running.members[killed].kill()
    left = [rank for rank in range(4) if rank != killed]
    errors = running.ended(*left)
    assert time.monotonic() - begun < 5
    for ranks in ((0, 1), (2, 3)):
        told: List[str] = [errors[rank] for rank in ranks if rank != killed and errors[rank]]
        assert len(told) == 1, errors
        where = f"on host {socket.gethostname()} (127.0.0.1), stage {killed % 2}"
        assert told[0].startswith(f"error: rank {killed} {where}, is gone")


@pytest.mark.parametrize("stopped", [[3], [0], [0, 1, 2, 3]])
def test_a_process_that_is_stopped_is_not_lost(running: World, stopped: List[int]) -> None:
    for rank in stopped:
        running.members[rank].send_signal(signal.SIGSTOP)
    time.sleep(LIMIT + 3)
    assert all(member.poll() is None for member in running.members.values())
    for rank in stopped:
        running.members[rank].send_signal(signal.SIGCONT)
    running.all_leave()


@pytest.mark.parametrize("failing", [0, 2, 3])
def test_others_end_soon_after_one_that_fails_and_say_which(running: World, failing: int) -> None:
    running.tell("raise ValueError('the first cause')", failing)
    errors = running.ended(0, 1, 2, 3)
    assert "the first cause" in errors.pop(failing)
    told = [text for text in errors.values() if text]
    assert len(told) == 2, errors  # one on each host
    assert all(text.startswith(f"error: rank {failing} on host") for text in told)
    assert all("failed, so this host ends, too" in text for text in told)


def test_what_gloo_says_of_a_lost_peer_gives_way_to_its_name(running: World) -> None:
    running.tell("raise RuntimeError('[gloo/transport/tcp/pair.cc] Connection closed by peer [10.0.0.2]')", 0, 1)
    time.sleep(0.3)
    assert running.members[0].poll() is None
    running.members[3].kill()
    errors = running.ended(0, 1, 2)
    assert errors[0].startswith("error: rank 3 on host")
    assert errors[1] == ""


def test_strangers_are_turned_away(world: World) -> None:
    world.start(0)
    file = world.folder / "0.member"
    while not file.exists():
        time.sleep(0.01)
    port, _ = pickle.loads(file.read_bytes())
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        world.start(1, 2, 3)
        world.wait_until_ready()
        world.all_leave()


def test_one_host_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.heartbeat import watch_hosts

    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert watch_hosts(0, "stage 0", lambda value: [value]) is None
