"""A server whose handlers are Trio tasks: for the lab and tests.

It accepts on the Trio side and hands each connection to grpclib. It knows its connections, to treat clients
as badly as a server can.
"""

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import grpclib.const
import grpclib.server
import trio
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol

from ztunnel_trio.control.grpc.bridge import trio_asyncio
from ztunnel_trio.control.grpc.errors import BadStatus
from ztunnel_trio.control.grpc.loop import CLOSE_SECONDS, abandon, from_asyncio
from ztunnel_trio.control.grpc.protocol import RAW, TolerantProtocol, open_transport

log = logging.getLogger("ztunnel::control::grpc")


class ServerCall:
    """One call as its server sees it."""

    __slots__ = ("_stream", "metadata", "peer")

    def __init__(self, stream: "grpclib.server.Stream[bytes, bytes]") -> None:
        self._stream = stream
        self.metadata: dict[str, str] = {
            name: value for name, value in (stream.metadata or {}).items() if isinstance(value, str)
        }
        address = stream.peer.addr()
        self.peer: str = str(address[0]) if address else ""  # a Unix socket's has no name

    async def receive(self) -> bytes | None:
        """The client's next message, or None when it has said its last."""
        return await from_asyncio(self._stream.recv_message)

    async def send(self, message: bytes) -> None:
        """Send one message; the first takes the response headers with it."""

        async def send() -> None:
            await self._stream.send_message(message)

        await from_asyncio(send)

    async def answer(self) -> None:
        """Send the response headers before any message."""
        await from_asyncio(self._stream.send_initial_metadata)


class Serve(Protocol):
    """What answers calls: returning is status OK, raising `BadStatus` is that status."""

    def __call__(self, call: ServerCall, /) -> Awaitable[None]: ...


@dataclass(slots=True, eq=False)
class Served:
    """A running server, for the one who started it."""

    port: int
    _protocols: "list[H2Protocol]" = field(default_factory=list)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len([one for one in self._protocols if open_transport(one) is not None])

    def drop_connections(self) -> None:
        """End every connection at once, as a killed server does."""
        for protocol in self._protocols:
            transport = open_transport(protocol)
            if transport is not None:
                transport.abort()
        self._protocols.clear()

    def write_raw(self, frame: bytes) -> None:
        """Write HTTP/2 bytes of one's own to every connection: frames grpclib would never send."""
        for protocol in self._protocols:
            transport = open_transport(protocol)
            if transport is not None:
                transport.write(frame)

    def send_goaway(self) -> None:
        """Announce the end of every connection, as a server's maximum connection age does."""
        for protocol in self._protocols:
            if open_transport(protocol) is not None:
                protocol.connection._connection.close_connection()
                protocol.connection.flush()


async def serve(
    handlers: Mapping[str, Serve],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    sock: socket.socket | None = None,
    ssl_context: ssl.SSLContext | None = None,
    task_status: "trio.TaskStatus[Served]" = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Answer gRPC calls by path until cancelled; then every connection is cut. For the lab and tests.

    A listening `sock` may be handed in (made in another network namespace), it is owned from then on. An
    `ssl_context` must offer ALPN `h2`. Handlers run as Trio tasks and are cancelled when their client goes.
    """
    plain = socket.create_server((host, port), family=_family(host)) if sock is None else sock
    plain.setblocking(False)
    listening = trio.socket.from_stdlib_socket(plain)
    server = _Server([_Mapping(handlers)], codec=RAW)
    served = server.served
    served.port = 0 if plain.family == socket.AF_UNIX else plain.getsockname()[1]
    try:
        with listening:
            async with trio.open_nursery() as handshakes:
                task_status.started(served)
                while True:
                    accepted, _ = await listening.accept()
                    connection = socket.socket(fileno=accepted.detach())
                    connection.setblocking(False)
                    handshakes.start_soon(server.adopt, connection, ssl_context)
    finally:
        for handler in server._handlers:
            handler.close()
        served.drop_connections()
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await from_asyncio(server.wait_handlers)
    raise AssertionError("unreachable")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Mapping:
    """Trio handlers, by path, in the form grpclib's server asks for."""

    def __init__(self, handlers: Mapping[str, Serve]) -> None:
        self._handlers = handlers

    def __mapping__(self) -> "dict[str, grpclib.const.Handler]":
        cardinality = grpclib.const.Cardinality.STREAM_STREAM  # unary calls are the same on the wire
        return {
            path: grpclib.const.Handler(_as_asyncio(handler), cardinality, bytes, bytes)
            for path, handler in self._handlers.items()
        }


def _as_asyncio(handler: Serve) -> "Callable[[grpclib.server.Stream[bytes, bytes]], Awaitable[None]]":
    async def run(call: ServerCall) -> None:
        await handler(call)

    async def answer(stream: "grpclib.server.Stream[bytes, bytes]") -> None:
        try:
            await trio_asyncio.trio_as_aio(run)(ServerCall(stream))
        except BadStatus as error:
            raise GRPCError(grpclib.const.Status(error.code.value), error.message) from error

    return answer


class _Server(grpclib.server.Server):
    """grpclib's server without its accept loop; it knows its connections."""

    def __init__(self, handlers: "list[_Mapping]", *, codec: CodecBase) -> None:
        super().__init__(handlers, codec=codec)
        self.served = Served(port=0)

    async def adopt(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Serve an accepted connection, which this owns; returns when it is secured."""

        is_begun = False

        async def secure() -> None:
            nonlocal is_begun
            is_begun = True
            is_secured = False
            try:
                await self._loop.connect_accepted_socket(self._protocol_factory, sock, ssl=context)
                is_secured = True
            finally:
                if not is_secured:
                    await abandon(sock)

        try:
            await from_asyncio(secure)
        except OSError as error:  # ssl.SSLError too
            log.debug("connection not secured: %s", error)
        finally:
            if not is_begun:
                sock.close()

    async def wait_handlers(self) -> None:
        """Wait for the calls that were cancelled."""
        for handler in list(self._handlers):
            await handler.wait_closed()

    def _protocol_factory(self) -> H2Protocol:
        plain = super()._protocol_factory()
        protocol = TolerantProtocol(plain.handler, plain.config, plain.h2_config)
        self.served._protocols[:] = [
            one
            for one in self.served._protocols
            if not hasattr(one, "connection") or open_transport(one) is not None
        ]
        self.served._protocols.append(protocol)
        return protocol
