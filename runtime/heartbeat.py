"""Notices within half a minute that a host of the run is gone, and ends its processes on all others with one message a host.

gloo and NCCL would wait for it until their timeout. Connections form a tree: the first process of each host holds one to rank 0,
the others hold one to the first on their host. They carry almost nothing; it is the systems at their ends that exchange the beats
(TCP keep-alive), so a process that is stopped in a debugger, compiles or validates for an hour is never taken for lost: only a
host that does not answer is, and a process that ends without having taken its leave.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

from errors import UserError
from machine import host_number, local_rank, spans_hosts
from runtime.interfaces import address_towards

IDLE_SECONDS, BEAT_SECONDS, BEATS = 5, 5, 4  # a host is lost when it has answered nothing for 5 + 4 x 5 seconds
LOST_AFTER_SECONDS = IDLE_SECONDS + BEAT_SECONDS * BEATS
CONNECT_SECONDS, GREETING_SECONDS = 60.0, 5.0
# A peer that fails is heard of through gloo as well, and says itself why: how long the others may take to end by themselves.
GRACE_SECONDS = 10.0
_TOKEN = 16  # bytes that tell a connection of ours from a stray one
_RECORD = struct.Struct("!cI")  # what has happened, and to which rank
LEFT, FAILED, ENDED, SILENT = b"L", b"F", b"E", b"S"


@dataclass(frozen=True)
class Member:
    """One process of the run, as all know it."""

    rank: int
    host: int  # see `machine.host_number`
    is_first: bool  # on its host
    name: str  # of its host
    address: str
    work: str  # what it computes
    port: int = 0  # where the first of a host takes connections
    token: bytes = b""  # which they begin with

    @property
    def where(self) -> str:
        return f"{self.name} ({self.address})" if self.address else self.name


def watch_hosts(rank: int, work: str, gather: Callable[[Any], List[Any]]) -> Optional[Watch]:
    """Watches the run's hosts from now on, where there are several. All processes call this; `work` says what this one computes,
    `gather` gives every process's value to every process.
    """
    if not spans_hosts():
        return None
    is_first = local_rank() == 0
    listener = _listen() if is_first else None
    me = Member(
        rank,
        host_number(),
        is_first,
        socket.gethostname(),
        address_towards(os.environ["MASTER_ADDR"]) or "",
        work,
        listener.getsockname()[1] if listener else 0,
        secrets.token_bytes(_TOKEN) if listener else b"",
    )
    members = {member.rank: member for member in gather(me)}
    try:
        watch = Watch(me, members, _connect(me, members, listener))
    except OSError as error:
        raise UserError(
            f"the run's hosts do not reach each other: {me.where} and {members[0].where} ({error.strerror or error}).\n"
            "       Their processes talk on ports that the system chooses: open all of them between the hosts (docs/hosts.md)."
        ) from error
    finally:
        if listener is not None:
            listener.close()
    watch.start()
    return watch


class Watch:
    """The connections of one process, and the thread that listens to them."""

    def __init__(self, me: Member, members: Dict[int, Member], neighbours: Dict[int, socket.socket]) -> None:
        self._me, self._members, self._neighbours = me, members, neighbours
        self._selector = selectors.DefaultSelector()
        for rank, connection in neighbours.items():
            self._selector.register(connection, selectors.EVENT_READ, rank)
        self._leaving = self._has_failed_connection = False
        self._failed: Optional[Tuple[int, float]] = None  # who failed first, and when this process has to have ended
        self._thread = threading.Thread(target=self._listen, name="watch hosts", daemon=True)

    def start(self) -> None:
        atexit.register(self._take_leave, FAILED)  # where the run ends by an error; see `leave`
        self._hook_before, sys.excepthook = sys.excepthook, self._on_error
        self._thread.start()

    def leave(self) -> None:
        """Ends the watch, in order. All processes call this, after they have agreed that the run is over."""
        atexit.unregister(self._take_leave)
        self._take_leave(LEFT)

    def _on_error(self, kind: Any, error: BaseException, trace: Any) -> None:
        """An error that nobody caught. gloo may find out first that a peer is gone; who it was, this watch hears presently, and
        ends the process.
        """
        if not self._leaving and _is_of_a_connection(error):
            self._has_failed_connection = True
            self._thread.join(LOST_AFTER_SECONDS + GRACE_SECONDS)
        self._hook_before(kind, error, trace)

    def _take_leave(self, how: bytes) -> None:
        self._tell(how, self._me.rank)
        self._leaving = True  # not before: the thread closes the connections then

    def _tell(self, what: bytes, rank: int, but: Optional[int] = None) -> None:
        """Tells those at the other ends, but for one."""
        for neighbour, connection in self._neighbours.items():
            if neighbour != but:
                with contextlib.suppress(OSError):
                    connection.sendall(_RECORD.pack(what, rank))

    def _listen(self) -> None:
        # Where all neighbours have left, too: a connection closed before this process has taken its leave would look like a loss.
        while not self._leaving:
            for key, _ in self._selector.select(timeout=1.0):
                if not self._leaving:
                    self._hear(key.data, self._neighbours[key.data])
            if self._failed is not None and not self._leaving:
                rank, deadline = self._failed
                if self._has_failed_connection or time.monotonic() > deadline:
                    self._end(FAILED, rank)
        for connection in self._neighbours.values():
            connection.close()

    def _hear(self, neighbour: int, connection: socket.socket) -> None:
        """Takes in what a neighbour says, or that it can no longer say anything."""
        try:
            record = _receive(connection, _RECORD.size)
        except OSError as error:
            what = ENDED if error.errno in (errno.ECONNRESET, errno.EPIPE) else SILENT
            self._lost(what, neighbour)
        else:
            if record is None:
                self._lost(ENDED, neighbour)
            else:
                self._heard(neighbour, *_RECORD.unpack(record))

    def _heard(self, neighbour: int, what: bytes, rank: int) -> None:
        if what in (LEFT, FAILED) and rank == neighbour:
            self._selector.unregister(self._neighbours[neighbour])
        if what == FAILED and self._failed is None:
            self._failed = rank, time.monotonic() + GRACE_SECONDS
            self._tell(FAILED, rank, but=neighbour)
        elif what in (ENDED, SILENT):
            self._lost(what, rank, teller=neighbour)

    def _lost(self, what: bytes, rank: int, teller: Optional[int] = None) -> None:
        """A process or its host is gone. Where another has failed before, launchers have ended this one for that."""
        if self._failed is not None:
            what, rank = FAILED, self._failed[0]
        self._tell(what, rank, but=rank if teller is None else teller)
        self._end(what, rank)

    def _end(self, what: bytes, rank: int) -> NoReturn:
        """Ends this process, whatever it is waiting for."""
        lost = self._members[rank]
        own = sorted(member.rank for member in self._members.values() if member.host == self._me.host)
        if self._me.rank == min(number for number in own if number != rank):  # one message a host
            _write(f"error: {describe(what, lost, list(self._members.values()))}\n")
        flusher = threading.Thread(target=sys.stdout.flush, daemon=True)  # the main thread may sit in it
        flusher.start()
        flusher.join(1.0)
        time.sleep(0.5)  # so that what was sent arrives, and that the message comes before a launcher ends those left
        os._exit(1)


def _is_of_a_connection(error: Optional[BaseException]) -> bool:
    """Whether gloo, NCCL, the store or a handover has failed, as they do when a peer is gone."""
    words = ("gloo", "NCCL", "DistBackendError", "DistNetworkError", "DistStoreError", "NeighbourLostError")
    while error is not None:
        text = f"{type(error).__name__} {error}"
        if any(word in text for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def describe(what: bytes, lost: Member, members: List[Member]) -> str:
    """What has happened, and what to do."""
    if what == SILENT:
        gone = "; ".join(f"rank {m.rank}, {m.work}" for m in members if m.host == lost.host)
        return (
            f"host {lost.where} is lost: it has answered nothing for {LOST_AFTER_SECONDS} s (or this host's own network is "
            f"down).\n       It had {gone}.\n       The run ends here. Go on with --resume on all hosts: docs/hosts.md."
        )
    who = f"rank {lost.rank} on host {lost.where}, {lost.work},"
    if what == FAILED:
        return f"{who} failed, so this host ends, too. What went wrong is among its messages."
    return (
        f"{who} is gone: it ended without a word (killed, out of memory, or its host restarted).\n"
        "       The run ends here. Go on with --resume on all hosts: docs/hosts.md."
    )


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())  # not through sys.stderr, whose lock another thread may hold


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _connect(me: Member, members: Dict[int, Member], listener: Optional[socket.socket]) -> Dict[int, socket.socket]:
    """Connections to the process that this one hangs on (rank 0 on none), and to those that hang on this one; by rank."""
    first_of = {member.host: member for member in members.values() if member.is_first}
    parents = {
        rank: 0 if member.is_first else first_of[member.host].rank for rank, member in members.items() if rank != 0
    }
    neighbours: Dict[int, socket.socket] = {}
    parent = parents.get(me.rank)
    if parent is not None:
        host = os.environ["MASTER_ADDR"] if me.is_first else "127.0.0.1"
        connection = socket.create_connection((host, members[parent].port), CONNECT_SECONDS)
        connection.sendall(members[parent].token + struct.pack("!I", me.rank))
        neighbours[parent] = connection
    missing = {rank for rank, its_parent in parents.items() if its_parent == me.rank}
    deadline = time.monotonic() + CONNECT_SECONDS
    while missing:
        assert listener is not None
        listener.settimeout(max(0.1, deadline - time.monotonic()))
        connection, _ = listener.accept()
        connection.settimeout(GREETING_SECONDS)
        greeting = b""
        with contextlib.suppress(OSError):
            greeting = _receive(connection, _TOKEN + 4) or b""
        if greeting[:_TOKEN] != me.token:
            connection.close()
            continue
        (rank,) = struct.unpack("!I", greeting[_TOKEN:])
        neighbours[rank] = connection
        missing.discard(rank)
    for connection in neighbours.values():
        _beat(connection)
    return neighbours


def _beat(connection: socket.socket) -> None:
    """Lets the system find out by itself whether the other end still answers."""
    connection.settimeout(CONNECT_SECONDS)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", IDLE_SECONDS), ("TCP_KEEPINTVL", BEAT_SECONDS), ("TCP_KEEPCNT", BEATS)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(connection: socket.socket, size: int) -> Optional[bytes]:
    """So many bytes, or None where the other end has closed. Raises OSError."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            return None
        data += more
    return data
