"""gRPC for Trio: the only module that knows a second event loop exists.

grpclib speaks gRPC on asyncio; trio-asyncio runs that loop inside Trio. Messages pass as bytes, so neither
side of this module knows what they mean. Every foreign exception becomes one of the `GrpcFailed` family.

Theory of operation. `open_control_loop()` opens the asyncio loop for everything below it. Each attempt to
talk to a server is one `open_channel()`: its own TCP connection, its own SSLContext (a rotated root file is
read), torn down by aborting the transport, since a TLS goodbye may wait 30 s for a peer that never answers.

What grpclib does not do is done here, on private names, hence the pinned version:
- Unknown frames, ALTSVC and informational responses end the connection in grpclib; they are ignored.
- A message is read in pieces of at most 64 KiB, with a limit on the length prefix: grpclib would join up to
  4 GiB in one go and hold the loop for it. Flow control returns credit piece by piece.
- HTTP/2 PINGs need four settings, or they stop after two: time, timeout, no limit without data, interval.
- A cancelled receive has lost its place in the stream: the stream refuses to be used again.
"""

import asyncio  # noqa: TID251  this module is the fence
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol, TypeVar

import grpclib.client
import grpclib.const
import grpclib.server
import trio
import trio_asyncio
from grpclib.config import Configuration
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import Deadline, _Metadata
from grpclib.protocol import H2Protocol
from grpclib.utils import Wrapper
from h2.events import (
    AlternativeServiceAvailable,
    DataReceived,
    Event,
    InformationalResponseReceived,
    UnknownFrameReceived,
)
from h2.exceptions import H2Error
from multidict import MultiDict

from ztunnel_trio.errors import WeBrokeProtocol, ZtunnelError
from ztunnel_trio.model.source import SystemRoots
from ztunnel_trio.net.failures import os_error_text
from ztunnel_trio.spec.grpc import GrpcCode
from ztunnel_trio.spec.network import ALPN_H2

T = TypeVar("T")
log = logging.getLogger("ztunnel::control::grpc")

PIECE_BYTES: Final = 64 * 1024
WINDOW_BYTES: Final = 64 * 1024  # read at most at once, and so worked through at once: 0.2 ms
MESSAGE_LIMIT_BYTES: Final = 200 * 1024 * 1024  # ztunnel xds/client.rs: istiod sends the mesh in one message
_PREFIX_BYTES: Final = 5  # gRPC over HTTP/2: compressed flag, 4 bytes of length
_HAPPY_EYEBALLS_SECONDS: Final = 0.25  # RFC 8305 section 5
_CLOSE_SECONDS: Final = 1.0
_TURNS_TO_CLOSE: Final = 10  # of the loop: TLS aborts TCP, which calls its protocol, which closes the socket


class GrpcFailed(ZtunnelError):
    """A call ended badly. `answered` tells whether the server had sent its response headers before."""

    def __init__(self, code: GrpcCode, message: str, *, answered: bool = False, source: str = "") -> None:
        super().__init__(f"{code.title}: {message}" + (f": {source}" if source else ""))
        self.code = code
        self.message = message
        self.answered = answered
        self.source = source


class NotConnected(GrpcFailed):
    """No connection came about: name, TCP, TLS or the peer's name; `source` says which."""

    def __init__(self, source: str) -> None:
        super().__init__(GrpcCode.UNKNOWN, "client error (Connect)", source=source)


class BadStatus(GrpcFailed):
    """The server answered with a status other than OK, or the call's deadline passed."""


class ConnectionEnded(GrpcFailed):
    """The connection or the stream ended under the call: GOAWAY, reset, crash, silence."""

    def __init__(self, source: str, *, answered: bool) -> None:
        super().__init__(GrpcCode.UNKNOWN, "connection lost", answered=answered, source=source)


class BadMessage(GrpcFailed):
    """The server sent a message that is too large, cut short or compressed."""

    def __init__(self, message: str, code: GrpcCode = GrpcCode.INTERNAL) -> None:
        super().__init__(code, message, answered=True)


@dataclass(frozen=True, slots=True)
class PemRoots:
    """Trust the certificates of a PEM text; those that cannot be used are skipped."""

    certificates_der: tuple[bytes, ...]


Roots = SystemRoots | PemRoots


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a server is and how it proves itself. There is no way not to verify it.

    `alternative_name` is accepted where the certificate does not name `host` (ztunnel src/tls/control.rs);
    the server is asked for by `host` in any case.
    """

    host: str
    port: int
    alternative_name: str | None = None

    def __str__(self) -> str:
        return (
            f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """Timeouts and limits of one connection to the control plane."""

    connect_seconds: float = 5.0
    """Name, TCP: ztunnel src/tls/control.rs."""
    handshake_seconds: float = 10.0
    """TLS; the reference has no limit, a peer that accepts and is silent would hold us for ever."""
    tcp_keepalive: tuple[int, int, int] = (300, 75, 9)
    """Idle seconds, interval seconds, probes: ztunnel src/tls/control.rs."""
    ping_seconds: float = 30.0
    """HTTP/2 PING while a stream is open; istiod tolerates one every 15 s."""
    ping_timeout_seconds: float = 10.0
    shutdown_seconds: float = 0.5
    """How long a TLS goodbye may take; it adds to `ping_timeout_seconds` for a peer that is gone."""
    message_limit_bytes: int = MESSAGE_LIMIT_BYTES
    tls12: bool = False
    """Allow TLS 1.2 beside 1.3."""


DEFAULT_SETTINGS: Final = ChannelSettings()


@asynccontextmanager
async def open_control_loop() -> AsyncGenerator[None, None]:
    """Run the body, and every task started below it, where channels and servers can be opened."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(_note_loop_error)
        try:
            yield
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await _from_asyncio(_wind_up)


@asynccontextmanager
async def open_channel(
    target: Target, roots: Roots, settings: ChannelSettings = DEFAULT_SETTINGS
) -> AsyncGenerator["Channel", None]:
    """Connect to a server for the body's time.

    Raises:
        NotConnected: refused, unknown name, too slow, not TLS, not HTTP/2, or not who we want to talk to.
    """
    stream = await _connect_tcp(target, settings)
    connection = _ClientConnection(stream, target, _client_context(target, roots, settings), settings)
    try:
        try:
            with trio.fail_after(settings.handshake_seconds):
                await _from_asyncio(connection.__connect__)
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

    async def open_stream(self, path: str, metadata: Mapping[str, str]) -> "CallStream":
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
            codec=_RAW,
            status_details_codec=None,
            dispatch=self._connection.__dispatch__,
            deadline=None if remaining is None else Deadline.from_timeout(remaining),
        )
        stream._wrapper = Wrapper()
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


class CallStream:
    """A call whose messages go both ways. One task sends, one receives; leaving the channel ends it."""

    __slots__ = ("_lost", "_message_limit_bytes", "_remaining", "_stream")

    def __init__(self, stream: "grpclib.client.Stream[bytes, bytes]", message_limit_bytes: int) -> None:
        self._stream = stream
        self._message_limit_bytes = message_limit_bytes
        self._remaining = 0
        self._lost = False

    @property
    def answered(self) -> bool:
        """Whether the server's response headers are here, and were not a refusal."""
        return self._stream.initial_metadata is not None and not self._stream._trailers_only

    async def send_headers(self) -> None:
        """Open the stream; `Channel.open_stream` has done it."""
        await self._translated(self._stream.send_request)

    async def send(self, message: bytes, *, last: bool = False) -> None:
        """Send one message, waiting while the server's window is shut.

        Raises:
            BadStatus, ConnectionEnded: the call is over.
        """

        async def send() -> None:
            await self._stream.send_message(message, end=last)

        await self._translated(send)

    async def wait_answered(self) -> None:
        """Wait for the response headers. istiod sends them together with its first message.

        Raises:
            BadStatus: refused before anything else was said.
            ConnectionEnded: as it says.
        """
        if self._stream.initial_metadata is None:
            await self._translated(self._stream.recv_initial_metadata, hears=True)

    async def begin_message(self) -> int | None:
        """Wait for the next message and return its size, or None when the server has ended with status OK.

        The whole message must then be read by `piece`.

        Raises:
            BadStatus, ConnectionEnded: the call is over.
            BadMessage: larger than the limit, or compressed, which we never agreed to.
        """
        if self._remaining:
            raise WeBrokeProtocol("a message was begun before the last one was read")
        await self.wait_answered()
        prefix = await self._read(_PREFIX_BYTES)
        if not prefix:
            await self._translated(self._finish)
            return None
        if prefix[0]:
            raise BadMessage("compressed message without agreed compression", GrpcCode.UNIMPLEMENTED)
        size = int.from_bytes(prefix[1:], "big")
        if size > self._message_limit_bytes:
            raise BadMessage(
                f"message length too large: found {size} bytes, "
                f"the limit is: {self._message_limit_bytes} bytes",
                GrpcCode.OUT_OF_RANGE,
            )
        self._remaining = size
        return size

    async def piece(self) -> bytes:
        """The next bytes of the message begun, at most 64 KiB; empty when it is complete."""
        if not self._remaining:
            return b""
        data = await self._read(min(self._remaining, PIECE_BYTES))
        if not data:
            raise BadMessage("message cut short")
        self._remaining -= len(data)
        return data

    async def receive(self) -> bytes | None:
        """A whole message, for those that are small, or None at the end."""
        size = await self.begin_message()
        if size is None:
            return None
        pieces: list[bytes] = []
        while data := await self.piece():
            pieces.append(data)
        return b"".join(pieces)

    async def _read(self, size: int) -> bytes:
        if self._lost:
            raise WeBrokeProtocol("a stream whose receive was cancelled has lost its place")

        async def read() -> bytes:
            with self._stream._wrapper:
                return await self._stream._stream.recv_data(size)

        self._lost = True  # until the bytes are here: a cancelled read may have taken some with it
        data = await self._translated(read, hears=True)
        self._lost = False
        return data

    async def _finish(self) -> None:
        """Turn the end of the server's side into its status."""
        if self._stream._trailers_only:
            return
        trailers = self._stream._stream.trailers
        if trailers is None:  # END_STREAM on DATA: no status will come
            raise GRPCError(grpclib.const.Status.UNKNOWN, "stream ended without trailers")
        self._stream._raise_for_grpc_status(*self._stream._process_grpc_status(dict(trailers)))

    async def _translated(self, step: Callable[[], Awaitable[T]], *, hears: bool = False) -> T:
        """Run one asyncio step of this call, with its errors in our words.

        A step that `hears` is tried again after a reset that followed the server's regular end: grpclib
        interrupts everybody, but what the server said before is still there to be heard.
        """
        try:
            try:
                return await _from_asyncio(step)
            except StreamTerminatedError:
                if not (hears and self._stream._stream.buffer._eof):
                    raise
                self._stream._wrapper = Wrapper()
                self._stream._stream.buffer._ack_callback = _give_no_credit
                return await _from_asyncio(step)
        except GRPCError as error:
            raise self._bad_status(error) from error
        except StreamTerminatedError as error:
            try:
                if self._stream._send_request_done:
                    self._stream._maybe_raise()  # a reset that follows trailers: the trailers count
            except GRPCError as status:
                raise self._bad_status(status) from error
            raise ConnectionEnded(str(error), answered=self.answered) from error
        except H2Error as error:
            raise ConnectionEnded(f"{type(error).__name__}: {error}", answered=self.answered) from error
        except OSError as error:
            raise ConnectionEnded(failure_text(error), answered=self.answered) from error
        except AssertionError as error:  # grpclib: 'Received less data than expected'
            raise BadMessage("message cut short") from error

    def _bad_status(self, error: GRPCError) -> BadStatus:
        headers = dict(self._stream._stream.headers or ()) if self._stream._send_request_done else {}
        if "grpc-status" in headers and error.status is grpclib.const.Status.UNKNOWN:
            # a refusal without content-type: its status says more than grpclib's complaint
            status, message, _ = self._stream._process_grpc_status(headers)
            return BadStatus(GrpcCode(status.value), message or "", answered=False)
        return BadStatus(GrpcCode(error.status.value), error.message or "", answered=self.answered)


class ServerCall:
    """One call as its server sees it."""

    __slots__ = ("_stream", "metadata", "peer")

    def __init__(self, stream: "grpclib.server.Stream[bytes, bytes]") -> None:
        self._stream = stream
        self.metadata: dict[str, str] = {
            name: value for name, value in (stream.metadata or {}).items() if isinstance(value, str)
        }
        address = stream.peer.addr()
        self.peer: str = "" if address is None else str(address[0])

    async def receive(self) -> bytes | None:
        """The client's next message, or None when it has said its last."""
        return await _from_asyncio(self._stream.recv_message)

    async def send(self, message: bytes) -> None:
        """Send one message; the first takes the response headers with it."""

        async def send() -> None:
            await self._stream.send_message(message)

        await _from_asyncio(send)

    async def answer(self) -> None:
        """Send the response headers before any message."""
        await _from_asyncio(self._stream.send_initial_metadata)


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
        return len([one for one in self._protocols if _transport(one) is not None])

    def drop_connections(self) -> None:
        """End every connection at once, as a killed server does."""
        for protocol in self._protocols:
            transport = _transport(protocol)
            if transport is not None:
                transport.abort()
        self._protocols.clear()

    def write_raw(self, frame: bytes) -> None:
        """Write HTTP/2 bytes of one's own to every connection: frames grpclib would never send."""
        for protocol in self._protocols:
            transport = _transport(protocol)
            if transport is not None:
                transport.write(frame)

    def send_goaway(self) -> None:
        """Announce the end of every connection, as a server's maximum connection age does."""
        for protocol in self._protocols:
            if _transport(protocol) is not None:
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
    server = _Server([_Mapping(handlers)], codec=_RAW)
    served = server.served
    served.port = plain.getsockname()[1]
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
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await _from_asyncio(server.wait_handlers)
    raise AssertionError("unreachable")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def server_context(chain_file: str, key_file: str | None = None) -> ssl.SSLContext:
    """A TLS context for `serve` that asks no certificate of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain_file, key_file)
    context.set_alpn_protocols([ALPN_H2])
    return context


def failure_text(error: OSError) -> str:
    """A failure to connect or to go on; a name that cannot be looked up has no error of the system's."""
    if isinstance(error, socket.gaierror):
        return f"failed to lookup address information: {error.strerror}"
    return os_error_text(error)


def name_matches(certificate: Mapping[str, object], name: str) -> bool:
    """Whether a verified certificate, in the form of `SSLObject.getpeercert()`, is for a DNS name or address.

    RFC 6125 6.4: subject alternative names only, without regard to case, a wildcard stands for exactly one
    whole leftmost label.
    """
    names = certificate.get("subjectAltName", ())
    assert isinstance(names, Sequence)
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        wanted = name.rstrip(".").lower()
        parent = wanted.partition(".")[2]
        return any(
            kind == "DNS" and (given.lower() == wanted or ("." in parent and given.lower() == f"*.{parent}"))
            for kind, given in names
        )
    return any(
        kind == "IP Address" and ipaddress.ip_address(given.strip()) == address for kind, given in names
    )


def _client_context(target: Target, roots: Roots, settings: ChannelSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if settings.tls12 else ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN_H2])
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # any certificate given is an anchor, as in webpki
    context.check_hostname = (
        target.alternative_name is None
    )  # else asked by `_ClientConnection`, chain verified
    match roots:
        case SystemRoots():
            context.load_default_certs()
        case PemRoots(certificates):
            for der in certificates:
                try:
                    context.load_verify_locations(cadata=der)
                except ssl.SSLError as error:
                    log.warning("root certificate ignored: %s", error)
    return context


async def _connect_tcp(target: Target, settings: ChannelSettings) -> socket.socket:
    """Connect, with keepalive set, and return a plain non-blocking socket.

    Raises:
        NotConnected: no address of the host could be reached in time.
    """
    try:
        with trio.fail_after(settings.connect_seconds):
            stream = await trio.open_tcp_stream(
                target.host, target.port, happy_eyeballs_delay=_HAPPY_EYEBALLS_SECONDS
            )
    except trio.TooSlowError as error:
        raise NotConnected("tcp connect error: deadline has elapsed") from error
    except socket.gaierror as error:
        raise NotConnected(f"dns error: {failure_text(error)}") from error
    except OSError as error:
        raise NotConnected(f"tcp connect error: {failure_text(_first_cause(error))}") from error
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


def _note_loop_error(_loop: asyncio.AbstractEventLoop, context: "dict[str, object]") -> None:
    """Keep a connection's error from ending the loop: its transport is closed already when this is called."""
    error = context.get("exception")
    text = str(context.get("message"))
    if isinstance(error, Exception):
        log.debug("%s: %r", text, error)
    else:
        log.debug("%s", text)


async def _wind_up() -> None:
    """End what the loop still runs (handshakes nobody waits for) and let transports close their sockets."""
    await _turns()  # a TLS transport that was only just made ignores its close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
    await _turns()


async def _abandon(sock: socket.socket) -> None:
    """Let a transport that never came about close its socket: it reads an end of file.

    Closing the socket under it would leave the loop watching a descriptor that is somebody else's soon.
    """
    with contextlib.suppress(OSError):  # not connected any more, or closed already
        sock.shutdown(socket.SHUT_RDWR)
    await _turns()


async def _turns() -> None:
    for _ in range(_TURNS_TO_CLOSE):
        await asyncio.sleep(0)


async def _from_asyncio(step: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function of the asyncio side and return its result on the Trio side."""
    result: T = await trio_asyncio.aio_as_trio(step)()
    return result


def _transport(protocol: H2Protocol) -> asyncio.Transport | None:
    """A protocol's transport while it is open."""
    connection = getattr(protocol, "connection", None)
    transport = getattr(connection, "_transport", None)
    if isinstance(transport, asyncio.Transport) and not transport.is_closing():
        return transport
    return None


def _give_no_credit(_size: int) -> None:
    """Stand in for flow control on a stream that is closed."""


def _ignore(_event: Event) -> None:
    """Process a frame that means nothing to us (RFC 9113 5.5: unknown types are discarded)."""


class _TolerantProtocol(H2Protocol):
    """grpclib's connection, which lives on when it meets a frame it does not know."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # grpclib annotates the events it knows; the table takes any.
        processors: dict[type, Callable[[Event], None]] = self.processor.processors  # type: ignore[assignment]
        for kind in (UnknownFrameReceived, AlternativeServiceAvailable, InformationalResponseReceived):
            processors[kind] = _ignore
        take = processors[DataReceived]

        def take_unless_empty(event: Event) -> None:
            # grpclib takes a frame without length for the end of the stream
            assert isinstance(event, DataReceived)
            if event.flow_controlled_length:
                take(event)

        processors[DataReceived] = take_unless_empty


class _RawCodec(CodecBase):
    """Messages stay bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: type) -> bytes:
        return message

    def decode(self, data: bytes, message_type: type) -> bytes:
        return data


_RAW: Final = _RawCodec()


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
        super().__init__(target.host, target.port, ssl=context, codec=_RAW, config=config)
        self._sock: socket.socket | None = sock
        self._target = target
        self._context = context
        self._shutdown_seconds = settings.shutdown_seconds
        self._open_transport: asyncio.Transport | None = None

    def _protocol_factory(self) -> H2Protocol:
        return _TolerantProtocol(grpclib.client.Handler(), self._config, self._h2_config)

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
                await _abandon(sock)
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
                    await _abandon(sock)

        try:
            await _from_asyncio(secure)
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
        protocol = _TolerantProtocol(plain.handler, plain.config, plain.h2_config)
        self.served._protocols[:] = [
            one
            for one in self.served._protocols
            if not hasattr(one, "connection") or _transport(one) is not None
        ]
        self.served._protocols.append(protocol)
        return protocol


__all__ = [
    "BadMessage",
    "BadStatus",
    "CallStream",
    "Channel",
    "ChannelSettings",
    "ConnectionEnded",
    "GrpcFailed",
    "NotConnected",
    "PemRoots",
    "Roots",
    "Serve",
    "Served",
    "ServerCall",
    "Target",
    "open_channel",
    "open_control_loop",
    "serve",
    "server_context",
]
