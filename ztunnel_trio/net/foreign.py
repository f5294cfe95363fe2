"""Dialling from an address that is not ours: the second leg of an inbound connection bears its client's.

*Ports.* A plaintext client and our second leg for it meet in one namespace with the same two addresses and
the same server port, so only the client's port tells them apart. The client's kernel chooses one without
knowing of ours, and a SYN that hits a port we took lands in the wrong connection and hangs. Linux helps:
`connect` first looks for a free port among those of the parity of `ip_local_port_range`'s lower end
(`__inet_hash_connect`), `bind` to port 0 among the others (`inet_csk_find_open_port`). We take the others,
too. Not by `bind` to port 0: that owns a port for all destinations, also while it is in TIME_WAIT, and looks
through the whole half once it is nearly used up. We count through the half ourselves, with SO_REUSEADDR, so
that only a connection with all four numbers equal is in the way; the port used longest ago comes next.

*Where our half is used up* for a client and destination, a few tries find that out (`TRIES`), and the kernel
chooses among all ports when connecting (IP_BIND_ADDRESS_NO_PORT), the other half first: then a clash is
possible again, and better than a refusal.
"""

import errno
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ztunnel_trio.facts.linux import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_TRANSPARENT,
    IPV6_TRANSPARENT,
    SOL_IP,
    SOL_IPV6,
)
from ztunnel_trio.model.address import IPAddress
from ztunnel_trio.net.socket_options import Option

log = logging.getLogger("ztunnel::socket")

PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")  # for IPv6, too
# What lets a socket be bound to an address that is not ours. Either serves as IP_FREEBIND, too
# (inet_can_nonlocal_bind, ipv6_can_nonlocal_bind).
_SHARED: Final[Option] = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
TRANSPARENT: Final[Mapping[socket.AddressFamily, tuple[Option, ...]]] = {
    socket.AF_INET: ((SOL_IP, IP_TRANSPARENT, 1), _SHARED),
    socket.AF_INET6: ((SOL_IPV6, IPV6_TRANSPARENT, 1), _SHARED),
}
TRIES: Final = 3  # ports of our half that may be taken, before the kernel chooses


class ForeignPorts:
    """The half of a pod's ports that `connect` does not look at first, over and over from a chance start."""

    __slots__ = ("_half", "_next")

    def __init__(self, half: range) -> None:
        self._half = half
        self._next = int.from_bytes(
            os.urandom(2), "big"
        )  # where nobody knows of the proxy that was here before

    def take(self) -> int:
        """The next port; 0, which leaves the choice to the kernel, where there are none."""
        if not self._half:
            return 0
        self._next += 1
        return self._half[self._next % len(self._half)]


def half_of(text: bytes) -> range:
    """The ports of `ip_local_port_range`, as `/proc` writes it, that `connect` takes last.

    Empty, if it is not two numbers: later kernels may say more.
    """
    try:
        low, high = map(int, text.split())
    except ValueError:
        return range(0)
    return range(low + 1, high + 1, 2)


def read_half() -> range:
    """As `half_of`, in the namespace of the calling thread."""
    try:
        return half_of(PORT_RANGE.read_bytes())
    except OSError as error:
        log.debug("failed to read %s: %s", PORT_RANGE, error)
        return range(0)


def bind_foreign(sock: socket.socket, source: IPAddress, port: int) -> None:
    """Bind a socket that has `TRANSPARENT`'s options. With port 0 the kernel chooses when connecting.

    Raises:
        OSError: the port is taken (EADDRINUSE), which port 0 cannot be. What else goes wrong is logged, and
            the connection bears an address of ours.
    """
    try:
        if not port:
            sock.setsockopt(SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((str(source), port))
    except OSError as error:
        if port and error.errno == errno.EADDRINUSE:
            raise
        log.warning("failed to bind local addr: %s", error)
