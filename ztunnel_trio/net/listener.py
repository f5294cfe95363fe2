"""Listening sockets and what can be asked of an accepted one.

`accept_into` has the engine accept in bursts and hands each socket to a task of the caller's nursery;
`Listener.accept` waits for one. No error of `accept` ends either: what the peer caused is logged and
skipped, what we caused (no descriptors left) is waited out, since the pending connection would make
`accept` fail at once again. `TCP_NODELAY` and keepalive are set on the listening socket, accepted ones
inherit them on Linux.
"""

import contextvars
import enum
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import trio

from ztunnel_trio.facts.linux import (
    IP6T_SO_ORIGINAL_DST,
    IP_TRANSPARENT,
    SO_ORIGINAL_DST,
    SOCKADDR_IN6_SIZE,
    SOCKADDR_IN_SIZE,
    SOL_IP,
    SOL_IPV6,
)
from ztunnel_trio.model.address import IPAddress, SocketAddress, canonical
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.shortcuts import accepting

log = logging.getLogger("ztunnel::socket")

Serve = Callable[[socket.socket, SocketAddress], Awaitable[object]]

BURST: Final = 64  # connections accepted between two turns of everybody else
PAUSE_SECONDS: Final = 0.1  # as trio.serve_listeners: time for others to give descriptors back

# The connection was gone, or the network failed it, before we took it (accept(2)): the next one is due.
_PEER_FAULTS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ECONNRESET,
    }
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A new connection; who takes it owns `sock`."""

    sock: socket.socket
    peer: SocketAddress


class Nothing(enum.Enum):
    """Why there is no connection to take."""

    CAME = enum.auto()
    TO_BE_HAD = enum.auto()  # no descriptor left, or worse: after a while, perhaps


class Listener:
    """A bound, listening, non-blocking socket; owns it until `close`.

    `transparent`: whether upstream sockets may bear the client's address. `address` is the bound one, with
    the port the kernel chose if 0 was asked for.
    """

    __slots__ = ("_accept", "_keepalive", "_set_keepalive", "address", "on_close", "sock", "transparent")

    def __init__(
        self,
        sock: socket.socket,
        *,
        transparent: bool = False,
        keepalive: bool = False,
        set_keepalive: Callable[[socket.socket], None] | None = None,
    ) -> None:
        self.sock = sock
        self._accept = accepting.acceptor(sock)
        self.address = _address(sock.getsockname())
        self.transparent = transparent
        self.on_close: Callable[[], None] | None = None  # for whoever accepts by other means than a task
        self._keepalive = keepalive
        self._set_keepalive = set_keepalive

    def set_keepalive(self) -> None:
        """Have connections accepted from now on probe idle peers, as the maker's settings say."""
        if self._set_keepalive is not None and not self._keepalive:
            self._keepalive = True
            self._set_keepalive(self.sock)

    def accept_nowait(self) -> Accepted:
        """Take the next connection.

        Raises:
            BlockingIOError: there is none.
            OSError: as accept(2).
        """
        sock, peer = self._accept()
        return Accepted(sock, _address(peer))

    def accept_next(self) -> Accepted | Nothing:
        """Take the next connection, past those that are gone already; or why there is none."""
        while True:
            try:
                return self.accept_nowait()
            except BlockingIOError:
                return Nothing.CAME
            except OSError as error:
                log.error("Failed TCP handshake %s (os error %s)", error.strerror, error.errno)
                if error.errno not in _PEER_FAULTS:
                    return Nothing.TO_BE_HAD

    async def accept(self) -> Accepted:
        """Wait for the next connection; errors of accept are logged and do not end the wait.

        Raises:
            trio.ClosedResourceError: the listener is or was closed.
        """
        await trio.lowlevel.checkpoint()
        while self.sock.fileno() >= 0:
            match self.accept_next():
                case Accepted() as accepted:
                    return accepted
                case Nothing.CAME:
                    await trio.lowlevel.wait_readable(self.sock)
                case Nothing.TO_BE_HAD:
                    await trio.sleep(PAUSE_SECONDS)
        raise trio.ClosedResourceError("the listener was closed")

    def close(self) -> None:
        """Stop listening. A task waiting in `accept` is woken with `trio.ClosedResourceError`."""
        if self.sock.fileno() >= 0:
            if self.on_close is not None:
                self.on_close()
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


async def accept_into(
    engine: Engine, listener: Listener, nursery: trio.Nursery, serve: Serve, *, keepalive: bool = False
) -> None:
    """Start `serve(sock, peer)` in `nursery` for each connection, until cancelled.

    The engine accepts: no task wakes up to start another. `serve` owns the socket from its first line on,
    which runs even if the nursery is being cancelled. With `keepalive`, connections that arrive from now on
    probe idle peers.

    Raises:
        trio.ClosedResourceError: somebody closed the listener.
    """
    if listener.sock.fileno() < 0:
        raise trio.ClosedResourceError("the listener was closed")
    if keepalive:
        listener.set_keepalive()
    end = _Accepting(engine, listener, nursery, serve)
    engine.register(listener.sock.fileno(), end)
    listener.on_close = end.closed
    try:
        while True:
            await end.trouble.wait()
            if end.bug is not None:
                raise end.bug
            await trio.sleep(PAUSE_SECONDS)
            end.trouble = Once(engine)
            engine.again(end)
    finally:
        listener.on_close = None
        engine.unregister(listener.sock.fileno())


class _Accepting:
    """A listening socket as an end of the engine. `trouble`: no descriptors left, or a bug."""

    def __init__(self, engine: Engine, listener: Listener, nursery: trio.Nursery, serve: Serve) -> None:
        self._engine = engine
        self._listener = listener
        self._nursery = nursery
        self._serve = serve
        self._context = contextvars.copy_context()
        self.trouble = Once(engine)
        self.bug: Exception | None = None

    def ready(self, _flags: int) -> None:
        self.go_on()

    def go_on(self) -> None:
        if self._listener.sock.fileno() < 0:
            return
        for _ in range(BURST):
            accepted = self._listener.accept_next()
            if accepted is Nothing.CAME:
                return
            if accepted is Nothing.TO_BE_HAD:
                self.trouble.set()
                return
            try:
                self._context.run(self._nursery.start_soon, self._serve, accepted.sock, accepted.peer)
            except RuntimeError:  # the nursery is closed: nobody will own it
                accepted.sock.close()
                raise
            self._engine.wake()
        self._engine.again(self)

    def broke(self, error: Exception) -> None:
        self.bug = error
        self.trouble.set()

    def closed(self) -> None:
        self._engine.unregister(self._listener.sock.fileno())
        self.broke(trio.ClosedResourceError("the listener was closed"))


def original_destination(sock: socket.socket) -> SocketAddress:
    """Where a redirected connection was headed before NAT; without NAT, its local address.

    Asks conntrack for the IPv4 tuple, then the IPv6 one: on a dual-stack listener each connection answers
    one of them only. Canonical.

    Raises:
        OSError: the connection is gone.
    """
    try:
        raw = sock.getsockopt(SOL_IP, SO_ORIGINAL_DST, SOCKADDR_IN_SIZE)
        return SocketAddress(_unpacked_ip(raw[4:8]), int.from_bytes(raw[2:4], "big"))
    except OSError:
        pass
    try:
        raw = sock.getsockopt(SOL_IPV6, IP6T_SO_ORIGINAL_DST, SOCKADDR_IN6_SIZE)
        return SocketAddress(_unpacked_ip(raw[8:24]), int.from_bytes(raw[2:4], "big"))
    except OSError as error:
        local = local_address(sock)
        if not _is_transparent(sock):
            _warn_unredirected(sock, local, error)
        return local


def local_address(sock: socket.socket) -> SocketAddress:
    """The address a connection came in on or left from, canonical."""
    return _address(sock.getsockname())


def peer_address(sock: socket.socket) -> SocketAddress:
    """The other end's address, canonical.

    Raises:
        OSError: not connected (any more).
    """
    return _address(sock.getpeername())


def _is_transparent(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(SOL_IP, IP_TRANSPARENT) != 0
    except OSError:
        return False


def _warn_unredirected(sock: socket.socket, local: SocketAddress, error: OSError) -> None:
    try:
        peer = str(peer_address(sock))
    except OSError:
        peer = "unknown"
    log.warning(
        "failed to read SO_ORIGINAL_DST: %s (os error %s)",
        error.strerror,
        error.errno,
        extra={"fields": {"peer": peer, "local": str(local)}},
    )


def _address(sockaddr: accepting.Sockaddr) -> SocketAddress:
    """What the socket module gives, without an IPv6 scope, canonical."""
    return SocketAddress(_ip(sockaddr[0]), sockaddr[1])


@lru_cache(maxsize=4096)  # the addresses of pods near by come again and again
def _ip(host: str) -> IPAddress:
    if ":" not in host:
        return IPv4Address(host)
    return canonical(IPv6Address(host.partition("%")[0]))


@lru_cache(maxsize=4096)
def _unpacked_ip(packed: bytes) -> IPAddress:
    return IPv4Address(packed) if len(packed) == 4 else canonical(IPv6Address(packed))
