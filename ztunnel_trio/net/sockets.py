"""Sockets made in a pod's namespace, marked so that the pod's redirection leaves them alone.

One `SocketFactory` a workload. With a `Netns` (shared mode) each socket is created inside it and listeners
share their port with another proxy process during an upgrade; without one (dedicated mode) sockets are made
where the process is. Creation is synchronous: the thread is inside the pod for microseconds and nothing may
run meanwhile. All sockets are non-blocking and close-on-exec (ztunnel src/socket.rs, src/inpod/config.rs).
"""

import errno
import logging
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

import trio

from ztunnel_trio.facts.linux import (
    IP_TRANSPARENT,
    SOL_IP,
)
from ztunnel_trio.model.address import IPAddress, SocketAddress, canonical
from ztunnel_trio.net.foreign import TRANSPARENT, TRIES, ForeignPorts, bind_foreign, read_half
from ztunnel_trio.net.listener import Listener, local_address
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.socket_options import NO_DELAY, SocketOptions
from ztunnel_trio.net.socket_options import SocketSettings as SocketSettings
from ztunnel_trio.net.spares import MOST, Spares

log = logging.getLogger("ztunnel::socket")

LOOPBACK_IPV6_SWITCH: Final = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
_NON_BLOCKING: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_DISCARD_PORT: Final = 9  # RFC 863; any would do
_HERE: Final = nullcontext()
_PORT_TAKEN: Final = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})  # by bind(2), by connect(2)


class BindFailed(OSError):
    """A listening socket could not be had; keeps `errno`, prints the text operators look for."""

    def __init__(self, address: SocketAddress, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.address = address

    def __str__(self) -> str:
        return f"failed to bind to address {self.address}: {self.strerror} (os error {self.errno})"


@dataclass(slots=True, eq=False)
class SocketFactory:
    """Makes the sockets of one workload. `netns` None: in the process's own namespace."""

    netns: Netns | None
    settings: SocketSettings
    _options: SocketOptions = field(init=False)
    _spares: dict[tuple[socket.AddressFamily, bool], Spares] = field(default_factory=dict, init=False)
    _foreign_ports: ForeignPorts | None = field(default=None, init=False)  # known from the first dial on

    def __post_init__(self) -> None:
        self._options = SocketOptions(self.settings)

    def close(self) -> None:
        """Close the sockets made ahead; the pod is going. Those handed out are their takers'."""
        for spares in self._spares.values():
            spares.close()

    def wildcard(self, port: int) -> SocketAddress:
        """Every address of the pod: `[::]`, which takes IPv4 as well, or `0.0.0.0` where IPv6 is off."""
        return SocketAddress(IPv6Address("::") if self.settings.ipv6 else IPv4Address("0.0.0.0"), port)

    def has_ipv6_loopback(self) -> bool:
        """Whether `::1` can be bound in the pod: IPv6 is on, and not switched off on `lo`."""
        if not self.settings.ipv6:
            return False
        with self.inside():
            return _loopback_has_ipv6()

    def has_address(self, ip: IPAddress) -> bool:
        """Whether what is sent to `ip` stays in the pod; nothing is sent to find out.

        For an address of its own the kernel takes that very address as the source (ip_route_output_key,
        ip6_dst_lookup), so an address put on an interface a moment ago counts as well.
        """
        try:
            with self.udp(_family(ip)) as probe:
                probe.connect((str(ip), _DISCARD_PORT))
                return local_address(probe).ip == ip
        except OSError:
            return False

    def listen_tcp(
        self, address: SocketAddress, *, transparent: bool | None = False, keepalive: bool = False
    ) -> Listener:
        """Bind and listen. `transparent` None: try, and tell by `Listener.transparent` whether it worked.

        With `keepalive`, accepted sockets probe idle peers and get the user timeout.

        Raises:
            BindFailed: the address is taken, not ours, transparency was required and is not permitted, …
        """
        try:
            return self._listen_tcp(address, transparent=transparent, keepalive=keepalive)
        except OSError as error:
            raise BindFailed(address, error) from error

    def listen_udp(self, address: SocketAddress) -> socket.socket:
        """Bind a datagram socket.

        Raises:
            BindFailed: as `listen_tcp`; here a refused `SO_REUSEPORT` is one too.
        """
        try:
            sock = self._make(_family(address.ip), socket.SOCK_DGRAM)
            try:
                if self.netns is not None:
                    self._options.set_mark(sock)
                    if self.settings.reuse_port:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if address.ip.version == 6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(_sockaddr(address))
            except OSError:
                sock.close()
                raise
        except OSError as error:
            raise BindFailed(address, error) from error
        return sock

    def udp(self, family: socket.AddressFamily) -> socket.socket:
        """An unbound datagram socket for asking others from inside the pod; marked.

        Raises:
            OSError: no descriptor left, or the mark is not permitted.
        """
        sock = self._make(family, socket.SOCK_DGRAM)
        try:
            self._options.set_mark(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def tcp(self, family: socket.AddressFamily) -> socket.socket:
        """A stream socket for dialling: marked before it can send a SYN, no delay, keepalive.

        Raises:
            OSError: no descriptor left, or the mark is not permitted.
        """
        return self._to_dial(family, is_foreign=False)

    async def connect(self, destination: SocketAddress, source: IPAddress | None = None) -> socket.socket:
        """Dial, from the address `source` if given and permitted; the caller sets the deadline.

        A `source` equal to the destination's address is not spoofed. The socket is of the source's family,
        so a source of one family cannot reach a destination of the other.

        Raises:
            OSError: as the kernel gave it; no socket is left behind, on cancellation neither.
        """
        sock, is_connected = self.connect_nowait(destination, source)
        if not is_connected:
            await self.finish_connecting(sock)
            return sock
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            sock.close()
            raise
        return sock

    def connect_nowait(
        self, destination: SocketAddress, source: IPAddress | None = None
    ) -> tuple[socket.socket, bool]:
        """Begin to dial as `connect` does, and whether it is done: near by, the handshake is over by then.

        Raises:
            OSError: as the kernel gave it; no socket is left behind.
        """
        target = canonical(destination.ip)
        there = (str(target), destination.port)
        spoof = None if source is None else canonical(source)
        if spoof is None or spoof == target:
            return _begin(self.tcp(_family(target)), there)
        if spoof.version != target.version:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        for _ in range(TRIES):
            try:
                return self._begin_as(spoof, self._foreign_port(), there)
            except OSError as error:
                if error.errno not in _PORT_TAKEN:
                    raise
        return self._begin_as(spoof, 0, there)

    def _begin_as(self, source: IPAddress, port: int, there: tuple[str, int]) -> tuple[socket.socket, bool]:
        """Begin to dial from an address that is not ours."""
        sock = self._to_dial(_family(source), is_foreign=True)
        try:
            bind_foreign(sock, source, port)
        except OSError:
            sock.close()
            raise
        return _begin(sock, there)

    def _to_dial(self, family: socket.AddressFamily, *, is_foreign: bool) -> socket.socket:
        """A stream socket with all that it needs before it is bound or connected."""
        spares = self._spares.get((family, is_foreign))
        if spares is None:
            prepare = self._options.of_dialling(TRANSPARENT[family] if is_foreign else ())
            most = 1 if self.netns is None else MOST  # where we are already there is no trip to share
            spares = self._spares[family, is_foreign] = Spares(family, self.inside, prepare, most=most)
        return spares.take()

    def _foreign_port(self) -> int:
        """The port that the next dial from a foreign address bears."""
        if self._foreign_ports is None:
            with self.inside():
                self._foreign_ports = ForeignPorts(read_half())
        return self._foreign_ports.take()

    async def finish_connecting(self, sock: socket.socket) -> None:
        """Wait for what `connect_nowait` began; closes the socket unless it is connected in the end.

        Raises:
            OSError: as the kernel gave it.
        """
        try:
            await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise

    def _listen_tcp(self, address: SocketAddress, *, transparent: bool | None, keepalive: bool) -> Listener:
        family = _family(address.ip)
        shares_port = self.netns is not None and self.settings.reuse_port
        sock = self._make(family, socket.SOCK_STREAM)
        try:
            if self.netns is not None:
                self._options.set_mark(sock)
            if shares_port:
                _share_port(sock)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(_sockaddr(address))
            is_transparent = transparent is not False and _make_transparent(
                sock, required=transparent is True
            )
            # Linux hands these on to every accepted socket (tcp_create_openreq_child).
            sock.setsockopt(*NO_DELAY)
            if keepalive:
                self._options.keep_alive(sock)
            sock.listen(self.settings.backlog)
            return Listener(
                sock, transparent=is_transparent, keepalive=keepalive, set_keepalive=self._options.keep_alive
            )
        except OSError:
            sock.close()
            raise

    def _make(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        with self.inside():
            return socket.socket(family, kind | _NON_BLOCKING)

    def inside(self) -> AbstractContextManager[None]:
        """Run the body where the sockets are made; see `Netns.inside`."""
        return _HERE if self.netns is None else self.netns.inside()


def _family(ip: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if ip.version == 4 else socket.AF_INET6


def _sockaddr(address: SocketAddress) -> tuple[str, int]:
    return str(address.ip), address.port


def _begin(sock: socket.socket, there: tuple[str, int]) -> tuple[socket.socket, bool]:
    """Send the SYN; whether the handshake is over already. No socket is left behind by an error."""
    try:
        error = sock.connect_ex(there)
        if error == errno.EINPROGRESS:
            error = sock.connect_ex(there)
        if error and error != errno.EALREADY:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock, not error


def _loopback_has_ipv6() -> bool:
    """`/proc/sys/net` shows the namespace of the thread that reads it; no such file, no IPv6."""
    try:
        return LOOPBACK_IPV6_SWITCH.read_bytes().strip() == b"0"
    except OSError:
        return False


def _share_port(sock: socket.socket) -> None:
    """Two proxy processes listen side by side during an upgrade; without it only the hand-over suffers."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        log.warning("setting set_reuseport failed: %s", error)


def _make_transparent(sock: socket.socket, *, required: bool) -> bool:
    """The IPv4 option, which serves IPv6 sockets as well: see the client's address, answer from it."""
    try:
        sock.setsockopt(SOL_IP, IP_TRANSPARENT, 1)
    except OSError:
        if required:
            raise
        return False
    return True
