"""Which network interface the processes of several hosts reach each other by."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Optional

_SIOCGIFADDR = 0x8915  # of ioctl(2), Linux: an interface's address
_ANYWHERE = "192.0.2.1"  # of no host (RFC 5737): the way there is the default route


def choose_interface() -> None:
    """Tells gloo the interface that leads to MASTER_ADDR, where nobody has chosen one.

    By itself it takes the address of the host's name, which many systems (Debian, Ubuntu) have point at the host itself.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    # To the first host itself, its own name may lead by the loopback.
    for host in (os.environ.get("MASTER_ADDR", ""), _ANYWHERE):
        address = address_towards(host)
        name = _interface_of(address) if address and not address.startswith("127.") else None
        if name is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def address_towards(host: str) -> Optional[str]:
    """This host's address on the network that leads to another; None where none does."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _interface_of(address: str) -> Optional[str]:
    """Name of the interface with an IPv4 address."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        for _, name in socket.if_nameindex():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
