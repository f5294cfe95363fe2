"""The far end of a tunnel, driven by hand: TLS bytes over a socket or over a stream, HTTP/2 by the core.

It answers every CONNECT with 200 and can end in each of the ways that peers end. What it was told is kept.
"""

import os
import socket
import ssl
from abc import ABC, abstractmethod
from contextlib import suppress

import trio

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection
from ztunnel_trio.wire.http2.settings import Http2Settings

GARBAGE = b"\x17\x03\x03\x00\x20" + bytes(32)  # an application record that decrypts to nothing
WINDOW = 65_535


class Wire(ABC):
    """What carries a peer's HTTP/2, and the ways in which it can go."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send all of it; there is room."""

    @abstractmethod
    async def read(self) -> bytes:
        """Some bytes; none at the end, however it came."""

    @abstractmethod
    def fin(self) -> None:
        """End without close_notify."""

    @abstractmethod
    def close_notify(self) -> None:
        """End as TLS wants it."""

    @abstractmethod
    def rst(self) -> None:
        """Break off."""

    @abstractmethod
    def garble(self) -> None:
        """Send what TLS refuses."""


class SocketWire(Wire):
    """TLS on a non-blocking socket."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls

    def write(self, data: bytes) -> None:
        with suppress(OSError, ValueError):  # it may be over
            self.tls.send(data)

    async def read(self) -> bytes:
        while True:
            try:
                return self.tls.recv(65_536)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.tls)
            except (OSError, ValueError):
                return b""

    def fin(self) -> None:
        with suppress(OSError):
            socket.socket.shutdown(self.tls, socket.SHUT_WR)

    def close_notify(self) -> None:
        with suppress(OSError, ValueError):
            self.tls.unwrap()
        self.fin()

    def rst(self) -> None:
        with suppress(OSError):  # it may be closed
            self.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.tls.close()

    def garble(self) -> None:
        os.write(self.tls.fileno(), GARBAGE)


class StreamWire(Wire):
    """TLS in a stream of another peer: the inner tunnel of double HBONE."""

    def __init__(self, outer: "RawPeer", stream_id: int, context: ssl.SSLContext) -> None:
        self.outer, self.stream_id = outer, stream_id
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Shake hands as the server."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._ship()
                self._incoming.write(await self.outer.bytes_of(self.stream_id))
            else:
                self._ship()
                return

    def _ship(self) -> None:
        if data := self._outgoing.read():
            self.outer.send(self.stream_id, data)

    def write(self, data: bytes) -> None:
        with suppress(ssl.SSLError):
            self.tls.write(data)
        self._ship()

    async def read(self) -> bytes:
        while True:
            try:
                return self.tls.read(65_536)
            except ssl.SSLWantReadError:
                more = await self.outer.bytes_of(self.stream_id)
                if not more:
                    return b""
                self._incoming.write(more)
            except ssl.SSLError:
                return b""

    def fin(self) -> None:
        self.outer.core.end(self.stream_id)
        self.outer.flush()

    def close_notify(self) -> None:
        with suppress(ssl.SSLError):
            self.tls.unwrap()
        self._ship()
        self.fin()

    def rst(self) -> None:
        self.outer.core.reset(self.stream_id, ErrorCode.INTERNAL_ERROR)
        self.outer.flush()

    def garble(self) -> None:
        self.outer.send(self.stream_id, GARBAGE)


class RawPeer:
    """One end of an HTTP/2 connection; `run` reads until it ends or `is_silent`."""

    def __init__(self, wire: Wire, *, is_client: bool, credits_bytes: bool = True) -> None:
        self.wire = wire
        self.core = Http2Connection(Http2Settings(is_client=is_client, stream_window=WINDOW))
        self.credits_bytes = credits_bytes
        self.is_silent = False
        self.ended = trio.Event()  # the transport
        self.requested: list[int] = []
        self.answered: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaways: list[int] = []
        self._received: dict[int, bytearray] = {}
        self._news = trio.Event()

    def flush(self) -> None:
        """Write what the core has to say."""
        if said := self.core.outgoing():
            self.wire.write(said)

    def send(self, stream_id: int, data: bytes) -> None:
        """DATA; the window has room. Nothing where the stream is over."""
        if not self.core.is_open(stream_id):
            return
        frame = memoryview(bytearray(9) + data)
        self.core.put_data_header(frame, stream_id, len(data))
        self.flush()
        self.wire.write(bytes(frame))

    def go_away(self, code: int) -> None:
        """Announce an error and close, as RFC 9113 5.4.1 has it."""
        self.core.go_away(code)
        self.flush()
        self.wire.close_notify()

    async def news(self) -> None:
        """Wait until something has come."""
        await self._news.wait()

    async def bytes_of(self, stream_id: int) -> bytes:
        """What has come on a stream; none at its end."""
        while True:
            if data := self._received.pop(stream_id, None):
                self.core.credit(stream_id, len(data))
                self.flush()
                return bytes(data)
            if stream_id in self.resets or self.ended.is_set():
                return b""
            await self.news()

    async def run(self) -> None:
        """Speak until the transport ends; with `is_silent` set, read nothing more and stay."""
        self.flush()
        while not self.is_silent:
            data = await self.wire.read()
            if self.is_silent:
                return
            if not data:
                break
            self._take(memoryview(data))
        self.ended.set()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    def _take(self, view: memoryview) -> None:
        while view:
            try:
                events = self.core.receive(view, trio.current_time())
            except PeerBrokeProtocol:
                break
            view = view[self.core.taken :]
            for event in events:
                self._handle(event)
        self.flush()
        self._tell()

    def _handle(self, event: http2.Event) -> None:
        match event:
            case http2.TunnelRequested(stream_id):
                self.requested.append(stream_id)
                self.core.accept(stream_id, [])
            case http2.TunnelAnswered(stream_id):
                self.answered.add(stream_id)
            case http2.DataReceived(stream_id, data):
                if self.credits_bytes:
                    self._received.setdefault(stream_id, bytearray()).extend(data)
            case http2.ResetReceived(stream_id, code):
                self.resets[stream_id] = code
            case http2.GoAwayReceived(_, code):
                self.goaways.append(code)
            case _:
                pass
