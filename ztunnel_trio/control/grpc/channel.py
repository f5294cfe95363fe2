"""A client's connection to one server: TCP, TLS, the server's name, and the calls on it.

HTTP/2 PINGs need four settings of grpclib's, or they stop after two: time, timeout, no limit without data,
interval. A connection is torn down by aborting its transport, since a TLS goodbye may wait 30 s for a peer
that never answers.
"""

import asyncio  # noqa: TID251  this room is the fence
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import grpclib.client
import grpclib.const
import trio
from grpclib.config import Configuration
from grpclib.exceptions import StreamTerminatedError
from grpclib.metadata import Deadline, _Metadata
from grpclib.protocol import H2Protocol
from multidict import MultiDict

from ztunnel_trio.control.grpc.call import CallStream
from ztunnel_trio.control.grpc.connect import connect_tcp, connect_unix
from ztunnel_trio.control.grpc.errors import BadStatus, NotConnected, failure_text
from ztunnel_trio.control.grpc.inbox import WINDOW_BYTES
from ztunnel_trio.control.grpc.loop import abandon, from_asyncio
from ztunnel_trio.control.grpc.protocol import RAW, TolerantProtocol
from ztunnel_trio.control.grpc.target import DEFAULT_SETTINGS, ChannelSettings, Roots, Target
from ztunnel_trio.control.grpc.tls import client_context, name_matches
from ztunnel_trio.errors import ZtunnelError
from ztunnel_trio.facts.grpc import GrpcCode
from ztunnel_trio.facts.network import ALPN_H2
from ztunnel_trio.model.socket_target import SocketTarget, UnixPath


@asynccontextmanager
async def open_channel(
    target: Target, roots: Roots, settings: ChannelSettings = DEFAULT_SETTINGS
) -> AsyncGenerator["Channel", None]:
    """Connect to a server for the body's time.

    Raises:
        NotConnected: refused, unknown name, too slow, not TLS, not HTTP/2, or not who we want to talk to.
    """
    security = Security(client_context(target, roots, settings), target.host, partial(_check_name, target))
    async with _channel_over(await connect_tcp(target, settings), target.host, security, settings) as channel:
        yield channel


@asynccontextmanager
async def open_agent_channel(
    target: SocketTarget, security: "Security | None", settings: ChannelSettings = DEFAULT_SETTINGS
) -> AsyncGenerator["Channel", None]:
    """Connect to an agent of this machine, or of another with `security`, for the body's time.

    Raises:
        NotConnected: as `open_channel`.
    """
    if isinstance(target, UnixPath):
        name, sock = "localhost", await connect_unix(target.path, settings)
    else:
        name, sock = target.host, await connect_tcp(target, settings)
    async with _channel_over(sock, name, security, settings) as channel:
        yield channel


@dataclass(frozen=True, slots=True)
class Security:
    """TLS for a channel: its context, the name that the server is asked for, and who it has to be.

    `check` is given the connection after the handshake and raises `NotTrusted` where it is somebody else's.
    """

    context: ssl.SSLContext
    server_name: str
    check: Callable[[ssl.SSLObject], None]


class NotTrusted(ZtunnelError):
    """The server's certificate is not that of whom we want to talk to."""


@asynccontextmanager
async def _channel_over(
    sock: socket.socket, name: str, security: Security | None, settings: ChannelSettings
) -> AsyncGenerator["Channel", None]:
    connection = _ClientConnection(sock, name, security, settings)
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
        except (StreamTerminatedError, NotTrusted) as error:
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
    """grpclib's channel over a socket of ours, with rules of our own for its peer."""

    def __init__(
        self, sock: socket.socket, name: str, security: Security | None, settings: ChannelSettings
    ) -> None:
        config = Configuration(
            _keepalive_time=settings.ping_seconds,
            _keepalive_timeout=settings.ping_timeout_seconds,
            _http2_max_pings_without_data=0,
            _http2_min_sent_ping_interval_without_data=settings.ping_seconds / 2,
            http2_connection_window_size=WINDOW_BYTES,
            http2_stream_window_size=WINDOW_BYTES,
        )
        context = None if security is None else security.context
        super().__init__(name, 0, ssl=context, codec=RAW, config=config)
        self._sock: socket.socket | None = sock
        self._security = security
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
            transport, protocol = await self._connection_over(sock)
            is_connected = True
        finally:
            if not is_connected:
                await abandon(sock)
        self._open_transport = transport
        if self._security is not None:
            tls = transport.get_extra_info("ssl_object")
            if tls.selected_alpn_protocol() != ALPN_H2:
                raise StreamTerminatedError("server does not speak HTTP/2")
            self._security.check(tls)  # only the preface has been sent by now
        return protocol

    async def _connection_over(self, sock: socket.socket) -> tuple[asyncio.Transport, H2Protocol]:
        if self._security is None:
            return await self._loop.create_connection(self._protocol_factory, sock=sock)
        return await self._loop.create_connection(
            self._protocol_factory,
            sock=sock,
            ssl=self._security.context,
            server_hostname=self._security.server_name,
            ssl_shutdown_timeout=self._shutdown_seconds,
        )

    def abort(self) -> None:
        """End the connection now, whatever state it is in."""
        if self._sock is not None:
            self._sock.close()
        self.close()
        if self._open_transport is not None:
            self._open_transport.abort()


def _tls_text(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"invalid peer certificate: {error.verify_message}"
    return f"tls error: {error.reason or error}"


def _check_name(target: Target, tls: ssl.SSLObject) -> None:
    """Accept the alternative name as well; without one OpenSSL has checked the host's."""
    if target.alternative_name is None:
        return
    certificate: Mapping[str, object] = tls.getpeercert() or {}
    names = (target.host, target.alternative_name)
    if not any(name_matches(certificate, name) for name in names):
        raise NotTrusted(f"invalid peer certificate: not valid for {' or '.join(map(repr, names))}")
