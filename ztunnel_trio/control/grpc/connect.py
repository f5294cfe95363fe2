"""Sockets to servers: TCP by whichever address answers first, and Unix sockets."""

import socket
from collections.abc import Sequence
from typing import Final

import trio

from ztunnel_trio.control.grpc.errors import NotConnected, failure_text
from ztunnel_trio.control.grpc.target import ChannelSettings, Target
from ztunnel_trio.model.socket_target import TcpAddress

_HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305 section 5


async def connect_tcp(target: Target | TcpAddress, settings: ChannelSettings) -> socket.socket:
    """Connect, with keepalive set, and return a plain non-blocking socket.

    Raises:
        NotConnected: the host has no address, or none could be reached in time; the text says which.
    """
    step = "dns error"
    try:
        with trio.fail_after(settings.connect_seconds):
            addresses = await _look_up(target)
            step = "tcp connect error"
            stream = await _connect_first(addresses, target.port)
    except trio.TooSlowError as error:
        raise NotConnected(f"{step}: deadline has elapsed") from error
    except OSError as error:
        raise NotConnected(f"{step}: {failure_text(error)}") from error
    sock = socket.socket(fileno=stream.socket.detach())
    try:
        sock.setblocking(False)
        idle, interval, probes = settings.tcp_keepalive
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    except OSError as error:
        sock.close()
        raise NotConnected(f"tcp connect error: {failure_text(error)}") from error
    return sock


async def _look_up(target: Target | TcpAddress) -> list[str]:
    """The addresses of a host, the resolver's preferred one first.

    Raises:
        socket.gaierror: there is none, or no resolver answers.
    """
    found = await trio.socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _connect_first(addresses: Sequence[str], port: int) -> trio.SocketStream:
    """Connect to whichever address answers first; each has a little time before the next is tried as well.

    Raises:
        OSError: none could be reached; it is the first one's failure.
    """
    connected: list[trio.SocketStream] = []
    failures: dict[str, OSError] = {}
    chosen: trio.SocketStream | None = None

    async def attempt(address: str, failed: trio.Event) -> None:
        try:
            connected.append(await trio.open_tcp_stream(address, port))
        except OSError as error:
            failures[address] = _first_cause(error)
            failed.set()
        else:
            nursery.cancel_scope.cancel(reason="connected")

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(_HAPPY_EYEBALLS_SECONDS):
                    await failed.wait()
        if not connected:
            raise failures[addresses[0]]
        chosen = connected[0]
        return chosen
    finally:
        for stream in connected:
            if stream is not chosen:  # two answered in the same turn, or the deadline came
                stream.socket.close()


def _first_cause(error: OSError) -> OSError:
    """The reason inside Trio's 'all attempts to connect failed'."""
    match error.__cause__:
        case OSError() as cause:
            return cause
        case ExceptionGroup(exceptions=[OSError() as cause, *_]):
            return cause
        case _:
            return error


async def connect_unix(path: str, settings: ChannelSettings) -> socket.socket:
    """Connect to a Unix stream socket and return a plain non-blocking socket.

    Raises:
        NotConnected: nobody listens there, or nobody answered in time; the text names the path.
    """
    try:
        with trio.fail_after(settings.connect_seconds):
            stream = await trio.open_unix_socket(path)
    except trio.TooSlowError as error:
        raise NotConnected(f"unix connect error: {path}: deadline has elapsed") from error
    except OSError as error:
        raise NotConnected(f"unix connect error: {path}: {failure_text(error)}") from error
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock
