"""Network namespaces of this machine as hosts of their own, joined by a bridge in one more; needs root."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, Sequence

import pytest

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


class Hosts:
    """`count` hosts, host-0 with address 10.77.0.1 and so on. Names cannot be resolved, as on many clusters."""

    def __init__(self, count: int) -> None:
        self.names = [f"pv{os.getpid()}h{number}" for number in range(count)]
        self.switch = f"pv{os.getpid()}sw"
        self.processes: List[subprocess.Popen[str]] = []

    def start(self) -> None:
        for name in [self.switch, *self.names]:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for number, name in enumerate(self.names):
            port = f"port{number}"
            ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def address(self, number: int) -> str:
        return f"10.77.0.{number + 1}"

    def run(self, number: int, command: Sequence[str], folder: Path, private: str = "") -> subprocess.Popen[str]:
        """Starts a command in `folder` of a host, where `private` names a folder that is empty there. See `log`."""
        hide = f"mount -t tmpfs none {shlex.quote(private)} && " if private else ""
        script = f'{hide}hostname host-{number} && exec "$@"'
        inside = ["ip", "netns", "exec", self.names[number], "unshare", "--uts", "sh", "-c", script, "sh", *command]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            inside,
            cwd=folder,
            env=env,
            stdout=(folder / f"host-{number}.log").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def torchrun(self, folder: Path, arguments: Sequence[str], private: str = "") -> List[subprocess.Popen[str]]:
        """The same program in two processes a host, by torchrun. `private`: a folder that is empty on the last host."""
        world = [f"--nnodes={len(self.names)}", f"--master-addr={self.address(0)}", "--master-port=29400"]
        return [
            self.run(
                number,
                [*TORCHRUN, *world, f"--node-rank={number}", "--nproc-per-node=2", *arguments],
                folder,
                private if number == len(self.names) - 1 else "",
            )
            for number in range(len(self.names))
        ]

    def cut(self, number: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        ip("-n", self.switch, "link", "set", f"port{number}", "up")

    def end_processes(self) -> None:
        """Ends what has been started, also what has left its session: all that is in a namespace of ours."""
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def stop(self) -> None:
        self.end_processes()
        for name in [*self.names, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def log(folder: Path, number: int) -> str:
    """What a host has printed."""
    return (folder / f"host-{number}.log").read_text()


def wait_for(folder: Path, text: str, processes: Sequence[subprocess.Popen[str]], seconds: float = 120) -> None:
    """Waits until host 0 has printed something."""
    deadline = time.monotonic() + seconds
    while text not in log(folder, 0):
        assert all(process.poll() is None for process in processes), log(folder, 0) + log(folder, 1)
        assert time.monotonic() < deadline, log(folder, 0) + log(folder, 1)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Hosts]:
    """Two hosts; skips, with the reason, where namespaces cannot be made."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("namespaces need the commands ip (iproute2) and unshare (util-linux)")
    hosts = Hosts(2)
    try:
        try:
            hosts.start()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here (not root?): {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.stop()
