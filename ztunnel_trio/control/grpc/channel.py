"""A client's connection to one server: TCP, TLS, the server's name, and the calls on it.

HTTP/2 PINGs need four settings of grpclib's, or they stop after two: time, timeout, no limit without data,
interval. A connection is torn down by aborting its transport, since a TLS goodbye may wait 30 s for a peer
that never answers.
"""

import asyncio  # noqa: TID251  this room is the fence
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import grpclib.client
import grpclib.const
import trio
from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from grpclib.metadata import Deadline, _Metadata
from grpclib.protocol import H2Protocol
from multidict import MultiDict

from ztunnel_trio.control.grpc.call import CallStream
from ztunnel_trio.control.grpc.errors import BadStatus, NotConnected, failure_text
from ztunnel_trio.control.grpc.inbox import WINDOW_BYTES
from ztunnel_trio.control.grpc.loop import abandon, from_asyncio
from ztunnel_trio.control.grpc.protocol import RAW, TolerantProtocol
from ztunnel_trio.control.grpc.target import DEFAULT_SETTINGS, ChannelSettings, Roots, Target
from ztunnel_trio.control.grpc.tls import client_context, name_matches
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ALPN_H2

_HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305 section 5


@asynccontextmanager
async def open_channel(
    target: Target, roots: Roots, settings: ChannelSettings = DEFAULT_SETTINGS
) -> AsyncGenerator["Channel", None]:
    """Connect to a server for the body's time.

    Raises:
        NotConnected: refused, unknown name, too slow, not TLS, not HTTP/2, or not who we want to talk to.
    """
    stream = await _connect_tcp(target, settings)
    connection = _ClientConnection(stream, target, client_context(target, roots, settings), settings)
    try:
        try:
            with trio.fail_after(settings.handshake_seconds):
                await from_asyncio(connection.__connect__)
        except trio.TooSlowError as error:
            raise NotConnected("TLS handshake timed out") from error
        except ssl.SSLError as error:
            raise NotConnected(_tls_text(error)) from error
        except OSError as error:
            raise NotConnected(failure_text(error)) from error
        except StreamTerminatedError as error:
            raise NotConnected(str(error)) from error
        yield Channel(connection, settings)
    finally:
        connection.abort()


class Channel:
    """One connection to a server; made by `open_channel`."""

    __slots__ = ("_connection", "_settings")

    def __init__(self, connection: "_ClientConnection", settings: ChannelSettings) -> None:
        self._connection = connection
        self._settings = settings

    async def open_stream(self, path: str, metadata: Mapping[str, str]) -> CallStream:
        """Send the headers of a call in both directions; does not wait for the server's.

        A call's deadline is the effective one of the scope that opens it, told to the server as
        `grpc-timeout`; keeping it is the caller's scope's work.

        Raises:
            ConnectionEnded: the connection is gone already.
            ValueError: metadata no HTTP/2 header can carry; callers check theirs before.
        """
        deadline = trio.current_effective_deadline()
        remaining = None if deadline == float("inf") else max(0.0, deadline - trio.current_time())
        stream: grpclib.client.Stream[bytes, bytes] = grpclib.client.Stream(
            self._connection,
            path,
            _Metadata(MultiDict(metadata)),
            grpclib.const.Cardinality.STREAM_STREAM,
            bytes,
            bytes,
            codec=RAW,
            status_details_codec=None,
            dispatch=self._connection.__dispatch__,
            deadline=None if remaining is None else Deadline.from_timeout(remaining),
        )
        call = CallStream(stream, self._settings.message_limit_bytes)
        await call.send_headers()
        return call

    async def call(self, path: str, request: bytes, metadata: Mapping[str, str]) -> bytes:
        """One question, one answer.

        Raises:
            BadStatus, ConnectionEnded, BadMessage: as `CallStream`.
        """
        stream = await self.open_stream(path, metadata)
        await stream.send(request, last=True)
        answer = await stream.receive()
        if answer is None:
            raise BadStatus(GrpcCode.INTERNAL, "Missing response message.", answered=True)
        while await stream.receive() is not None:  # up to the status, which may yet be a bad one
            pass
        return answer


class _ClientConnection(grpclib.client.Channel):
    """grpclib's channel over a socket of ours, with the name rule of `Target`."""

    def __init__(
        self, sock: socket.socket, target: Target, context: ssl.SSLContext, settings: ChannelSettings
    ) -> None:
        config = Configuration(
            _keepalive_time=settings.ping_seconds,
            _keepalive_timeout=settings.ping_timeout_seconds,
            _http2_max_pings_without_data=0,
            _http2_min_sent_ping_interval_without_data=settings.ping_seconds / 2,
            http2_connection_window_size=WINDOW_BYTES,
            http2_stream_window_size=WINDOW_BYTES,
        )
        super().__init__(target.host, target.port, ssl=context, codec=RAW, config=config)
        self._sock: socket.socket | None = sock
        self._target = target
        self._context = context
        self._shutdown_seconds = settings.shutdown_seconds
        self._open_transport: asyncio.Transport | None = None

    def _protocol_factory(self) -> H2Protocol:
        return TolerantProtocol(grpclib.client.Handler(), self._config, self._h2_config)

    async def _create_connection(self) -> H2Protocol:
        sock, self._sock = self._sock, None
        if sock is None:
            raise StreamTerminatedError(
                "Connection lost"
            )  # grpclib wants to connect again: an attempt is one
        is_connected = False
        try:
            transport, protocol = await self._loop.create_connection(
                self._protocol_factory,
                sock=sock,
                ssl=self._context,
                server_hostname=self._target.host,
                ssl_shutdown_timeout=self._shutdown_seconds,
            )
            is_connected = True
        finally:
            if not is_connected:
                await abandon(sock)
        self._open_transport = transport
        self._check_peer(transport)
        return protocol

    def _check_peer(self, transport: asyncio.Transport) -> None:
        """Hold the server to HTTP/2 and to one of its names; only the preface has been sent by now."""
        tls = transport.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != ALPN_H2:
            raise StreamTerminatedError("server does not speak HTTP/2")
        names = [self._target.host, self._target.alternative_name]
        if self._target.alternative_name is not None:
            certificate: dict[str, object] = tls.getpeercert()
            if not any(name is not None and name_matches(certificate, name) for name in names):
                raise StreamTerminatedError(
                    f"invalid peer certificate: not valid for {' or '.join(map(repr, names))}"
                )

    def abort(self) -> None:
        """End the connection now, whatever state it is in."""
        if self._sock is not None:
            self._sock.close()
        self.close()
        if self._open_transport is not None:
            self._open_transport.abort()


async def _connect_tcp(target: Target, settings: ChannelSettings) -> socket.socket:
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


async def _look_up(target: Target) -> list[str]:
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


def _tls_text(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"invalid peer certificate: {error.verify_message}"
    return f"tls error: {error.reason or error}"
