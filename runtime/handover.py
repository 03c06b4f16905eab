"""Hands tokens and gradients to the neighbouring stage of the same host through memory that both processes see.

gloo sends them by TCP, whose copies, threads and waits are 3 % of the CPU time of a ViT of width 192. Here the sender copies
once, to where the receiver computes with it, and says by a few bytes on a socket that it is there. It waits only where some
hundred are unread.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

_NUMBER = struct.Struct("!I")
_ALIGNMENT = 64  # bytes: a cache line
_KEY = 32  # bytes, by which the two ends know each other
Home = Tuple[str, str, bytes]  # host, address and key of a process that takes connections


class NeighbourLostError(RuntimeError):
    """The process of a neighbouring stage has ended, or does nothing any more."""


@dataclass(frozen=True)
class Boundary:
    """Where a part of the model ends and the next begins, in two processes of a replica."""

    part: int  # before it
    ranks: Tuple[int, int]  # of the parts before and behind it
    tokens: Tensor  # what passes it in a micro-batch: type and shape
    sends_back: bool  # whether gradients go the other way
    num_slots: int  # micro-batches whose tokens or gradients may be here at a time

    @property
    def slot_bytes(self) -> int:
        size = self.tokens.numel() * self.tokens.element_size()
        return -(-size // _ALIGNMENT) * _ALIGNMENT


class Handover:
    """One process's end of a boundary.

    Micro-batch i goes into slot i mod `num_slots`. Nobody overwrites what is still read: see `slots_needed`.
    """

    def __init__(self, boundary: Boundary, is_before: bool, connection: Connection, fd: int, timeout: float) -> None:
        self.sends_back = boundary.sends_back
        self._connection, self._timeout = connection, timeout
        self._who = f"stage {boundary.part + is_before} (rank {boundary.ranks[is_before]})"
        halves = _slots(boundary, fd)
        self._outgoing, self._incoming = halves if is_before else halves[::-1]

    def put(self, number: int, value: Optional[Tensor]) -> None:
        """Gives the neighbour a micro-batch's tokens or gradients; None: zeros."""
        slot = self._outgoing[number % len(self._outgoing)]
        if value is None:
            slot.zero_()
        else:
            slot.copy_(value.detach())
        try:
            self._connection.send_bytes(_NUMBER.pack(number))
        except OSError as error:
            raise NeighbourLostError(f"{self._who} is gone: it no longer takes what it is sent") from error

    def take(self, number: int) -> Tensor:
        """What the neighbour gives of a micro-batch, as soon as it is there: its memory, without a copy. A leaf for autograd."""
        try:
            if not self._connection.poll(self._timeout):
                raise NeighbourLostError(f"{self._who} has sent nothing for {self._timeout:.0f} s")
            (sent,) = _NUMBER.unpack(self._connection.recv_bytes())
        except (OSError, EOFError) as error:
            raise NeighbourLostError(f"{self._who} is gone: it has ended without sending what is due") from error
        assert sent == number, f"micro-batch {sent} came in the place of {number}"
        return self._incoming[number % len(self._incoming)].detach()

    def close(self) -> None:
        self._connection.close()


def slots_needed(schedule: str, num_parts: int, part: int, micro_batches: int, sends_back: bool) -> int:
    """For the boundary behind `part`. All processes pass a collective between two weight updates, so each begins anew.

    In 1F1B a stage sends tokens i + n after the gradients of micro-batch i have come back, with n = `num_parts` - `part`; and
    gradients i + 2 are sent after tokens have come that were computed after the backward pass of i. Elsewhere, and where
    no gradients come back: one for each micro-batch, as torch has a buffer for each.
    """
    return min(micro_batches, num_parts - part) if schedule == "1f1b" and sends_back else micro_batches


def open_handovers(
    boundaries: Sequence[Boundary], rank: int, gather: Callable[[Any], List[Any]], timeout: float
) -> Dict[int, Handover]:
    """This process's ends of those boundaries whose two ends share a host, by `part`. Every process of the run calls this."""
    listener, home = _listen()
    homes: List[Optional[Home]] = gather(home)
    ends: Dict[int, Handover] = {}
    # In one order everywhere: a process that connects waits until the other has come to the same boundary.
    for boundary in sorted(boundaries, key=lambda boundary: boundary.part):
        before, behind = (homes[end] for end in boundary.ranks)
        if before is None or behind is None or before[0] != behind[0]:
            continue
        is_before = rank == boundary.ranks[0]
        if is_before:
            assert listener is not None
            connection, fd = _accept(listener, boundary)
        else:
            connection = Client(before[1], authkey=before[2])
            fd = reduction.recv_handle(connection)
        ends[boundary.part] = Handover(boundary, is_before, connection, fd, timeout)
        os.close(fd)
    if listener is not None:
        listener.close()
    return ends


def _listen() -> Tuple[Optional[Listener], Optional[Home]]:
    """None where the system does not have what this takes: messages go by gloo then."""
    address, key = f"\0pipevit-{secrets.token_hex(16)}", secrets.token_bytes(_KEY)
    try:
        os.close(os.memfd_create("pipevit"))  # a sandbox may forbid it
        # Of this boot of this machine, and its network: abstract addresses (unix(7)), which leave no file behind, end there.
        host = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii") + os.readlink("/proc/self/ns/net")
        return Listener(address, family="AF_UNIX", authkey=key), (host, address, key)
    except (OSError, AttributeError):
        return None, None


def _accept(listener: Listener, boundary: Boundary) -> Tuple[Connection, int]:
    """A connection with the process behind a boundary, and memory that has been handed to it, too."""
    connection = listener.accept()
    fd = os.memfd_create("pipevit")  # without a name in a file system, and without the limit of /dev/shm
    os.ftruncate(fd, 2 * boundary.num_slots * boundary.slot_bytes)
    reduction.send_handle(connection, fd, 0)
    return connection, fd


def _slots(boundary: Boundary, fd: int) -> Tuple[List[Tensor], List[Tensor]]:
    """Memory for tokens and for gradients, a tensor a slot."""
    memory = mmap.mmap(fd, 2 * boundary.num_slots * boundary.slot_bytes)
    like = boundary.tokens
    slots = [
        torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=index * boundary.slot_bytes).view(
            like.shape
        )
        for index in range(2 * boundary.num_slots)
    ]
    return slots[: boundary.num_slots], slots[boundary.num_slots :]
