"""Listening sockets and what can be asked of an accepted one.

`accept_into` accepts in bursts, attempt first and wait after, and hands each socket to a task of the
caller's nursery. No error of `accept` ends the loop: what the peer caused is logged and skipped, what we
caused (no descriptors left) is waited out, since the pending connection would make `accept` fail at once
again. `TCP_NODELAY` and keepalive are set on the listening socket, accepted ones inherit them on Linux.
"""

import contextvars
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

log = logging.getLogger("ztunnel::socket")

Serve = Callable[[socket.socket, SocketAddress], Awaitable[object]]
_Sockaddr = tuple[str, int] | tuple[str, int, int, int]
_Accept = Callable[[], tuple[int, _Sockaddr]]

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


class Listener:
    """A bound, listening, non-blocking socket; owns it until `close`.

    `transparent`: whether upstream sockets may bear the client's address. `address` is the bound one, with
    the port the kernel chose if 0 was asked for.
    """

    __slots__ = (
        "_accept",
        "_family",
        "_keepalive",
        "_kind",
        "_protocol",
        "_set_keepalive",
        "address",
        "on_close",
        "sock",
        "transparent",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        transparent: bool = False,
        keepalive: bool = False,
        set_keepalive: Callable[[socket.socket], None] | None = None,
    ) -> None:
        self.sock = sock
        # The system call behind socket.accept; not documented, there since Python 3.
        self._accept: _Accept = sock._accept  # type: ignore[attr-defined]
        self._family, self._kind, self._protocol = int(sock.family), int(sock.type), sock.proto
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
        fd, peer = self._accept()
        # As socket.accept, which looks up names for three numbers, and what the default timeout is.
        sock = socket.socket(self._family, self._kind, self._protocol, fileno=fd)
        sock.setblocking(False)
        return Accepted(sock, _address(peer))

    async def accept(self) -> Accepted:
        """Wait for the next connection; errors of accept are logged and do not end the wait.

        Raises:
            trio.ClosedResourceError: the listener is or was closed.
        """
        await trio.lowlevel.checkpoint()
        while True:
            accepted = await self._attempt()
            if accepted is not None:
                return accepted

    def close(self) -> None:
        """Stop listening. A task waiting in `accept` is woken with `trio.ClosedResourceError`."""
        if self.sock.fileno() >= 0:
            if self.on_close is not None:
                self.on_close()
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    async def _attempt(self) -> Accepted | None:
        """One connection, without a checkpoint if there is one; else wait for the cause to pass."""
        if self.sock.fileno() < 0:
            raise trio.ClosedResourceError("the listener was closed")
        try:
            return self.accept_nowait()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(self.sock)
        except OSError as error:
            log.error("Failed TCP handshake %s (os error %s)", error.strerror, error.errno)
            if error.errno in _PEER_FAULTS:
                await trio.lowlevel.checkpoint()
            else:
                await trio.sleep(PAUSE_SECONDS)
        return None


async def accept_into(
    listener: Listener, nursery: trio.Nursery, serve: Serve, *, keepalive: bool = False
) -> None:
    """Start `serve(sock, peer)` in `nursery` for each connection, until cancelled.

    `serve` owns the socket from its first line on, which runs even if the nursery is being cancelled. With
    `keepalive`, connections that arrive from now on probe idle peers.

    Raises:
        trio.ClosedResourceError: somebody closed the listener.
    """
    if keepalive:
        listener.set_keepalive()
    burst = 0
    while True:
        if burst >= BURST:
            burst = 0
            await trio.lowlevel.checkpoint()
        accepted = await listener._attempt()
        if accepted is None:
            burst = 0
            continue
        burst += 1
        try:
            nursery.start_soon(serve, accepted.sock, accepted.peer)
        except RuntimeError:  # the nursery is closed: nobody will own it
            accepted.sock.close()
            raise


async def accept_with(
    engine: Engine, listener: Listener, nursery: trio.Nursery, serve: Serve, *, keepalive: bool = False
) -> None:
    """As `accept_into`, where the engine accepts: no task wakes up to start another.

    Raises:
        trio.ClosedResourceError: somebody closed the listener.
    """
    if listener.sock.fileno() < 0:
        raise trio.ClosedResourceError("the listener was closed")
    if keepalive:
        listener.set_keepalive()
    accepting = _Accepting(engine, listener, nursery, serve)
    engine.register(listener.sock.fileno(), accepting)
    listener.on_close = accepting.closed
    try:
        while True:
            await accepting.trouble.wait()
            if accepting.bug is not None:
                raise accepting.bug
            await trio.sleep(PAUSE_SECONDS)
            accepting.trouble = Once(engine)
            engine.again(accepting)
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
            try:
                accepted = self._listener.accept_nowait()
            except BlockingIOError:
                return
            except OSError as error:
                log.error("Failed TCP handshake %s (os error %s)", error.strerror, error.errno)
                if error.errno in _PEER_FAULTS:
                    continue
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


def _address(sockaddr: _Sockaddr) -> SocketAddress:
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
