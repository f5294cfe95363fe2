"""HTTP/2 written by hand: a factory of frames, and a client made of them that talks to a server of ours."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import hpack

from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection
from ztunnel_trio.wire.http2.events import Event, TunnelRequested
from ztunnel_trio.wire.http2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from ztunnel_trio.wire.http2.settings import Http2Settings

TextField = tuple[str, str]
CONNECT: list[TextField] = [(":method", "CONNECT"), (":authority", "1.2.3.4:80")]
END_STREAM, END_HEADERS = 1, 4


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it was read."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class FrameFactory:
    """Makes frames, sensible or not; header blocks are those of one connection."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def raw(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
        head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream_id)
        return head + payload

    def preface(self) -> bytes:
        return PREFACE + self.settings()

    def settings(self, values: Mapping[int, int] | None = None, *, ack: bool = False) -> bytes:
        pairs = (values or {}).items()
        return self.raw(SETTINGS, int(ack), 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))

    def headers(self, stream_id: int, fields: Sequence[TextField], flags: int = END_HEADERS) -> bytes:
        return self.raw(HEADERS, flags, stream_id, self.encoder.encode(fields))

    def data(self, stream_id: int, payload: bytes = b"", *, ends: bool = False) -> bytes:
        return self.raw(DATA, int(ends), stream_id, payload)

    def padded(self, stream_id: int, payload: bytes, padding: int, *, ends: bool = False) -> bytes:
        return self.raw(DATA, 8 | int(ends), stream_id, bytes((padding,)) + payload + bytes(padding))

    def continuation(self, stream_id: int, fragment: bytes = b"", flags: int = 0) -> bytes:
        return self.raw(CONTINUATION, flags, stream_id, fragment)

    def reset(self, stream_id: int, code: int = ErrorCode.CANCEL) -> bytes:
        return self.raw(RST_STREAM, 0, stream_id, struct.pack(">I", code))

    def window_update(self, stream_id: int, increment: int) -> bytes:
        return self.raw(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))

    def ping(self, payload: bytes = bytes(8), *, ack: bool = False) -> bytes:
        return self.raw(PING, int(ack), 0, payload)

    def priority(self, stream_id: int, depends_on: int = 0) -> bytes:
        return self.raw(PRIORITY, 0, stream_id, struct.pack(">IB", depends_on, 0))

    def goaway(self, last: int, code: int = ErrorCode.NO_ERROR, debug: bytes = b"") -> bytes:
        return self.raw(GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def read_frames(data: bytes) -> Iterator[Frame]:
    """The frames of what a connection wrote, without its preface."""
    data = data.removeprefix(PREFACE)
    while data:
        length = int.from_bytes(data[:3], "big")
        stream_id = int.from_bytes(data[5:9], "big")
        yield Frame(data[3], data[4], stream_id, data[9 : 9 + length])
        data = data[9 + length :]


def feed(core: Http2Connection, data: bytes | memoryview, now: float = 0.0) -> list[Event]:
    """All that a connection makes of these bytes, in as many steps as it takes."""
    events: list[Event] = []
    view = memoryview(data)
    while view:
        events += core.receive(view, now)
        view = view[core.taken :]
    return events


def data_frame(core: Http2Connection, payload: bytes, stream_id: int = 1) -> memoryview:
    """A DATA frame of ours, charged to its windows."""
    buffer = memoryview(bytearray(9) + payload)
    core.put_data_header(buffer, stream_id, len(payload))
    return buffer


class Peer:
    """A client that writes what it likes to a server of ours; `now` is the server's clock."""

    def __init__(self, settings: Http2Settings | None = None) -> None:
        self.core = Http2Connection(settings or Http2Settings(is_client=False))
        self.make = FrameFactory()
        self.decoder = hpack.Decoder()
        self.now = 0.0
        self.greeting = list(read_frames(self.core.outgoing()))
        self.say(self.make.preface())
        self.core.outgoing()

    def say(self, data: bytes) -> list[Event]:
        return feed(self.core, data, self.now)

    def headers(self, stream_id: int, fields: Sequence[TextField], flags: int = END_HEADERS) -> list[Event]:
        return self.say(self.make.headers(stream_id, fields, flags))

    def heard(self) -> list[Frame]:
        return list(read_frames(self.core.outgoing()))

    def open(self, stream_id: int = 1) -> None:
        """A stream that was asked for and answered."""
        [event] = self.headers(stream_id, CONNECT)
        assert isinstance(event, TunnelRequested)
        self.core.accept(stream_id, [])
        self.core.outgoing()

    def fields(self, frame: Frame) -> list[TextField]:
        return [(str(name), str(value)) for name, value in self.decoder.decode(frame.payload)]


def rst(stream_id: int, code: ErrorCode) -> Frame:
    """RST_STREAM, as it is read."""
    return Frame(RST_STREAM, 0, stream_id, struct.pack(">I", code))


def goaway(last: int, code: ErrorCode) -> Frame:
    """GOAWAY, as it is read."""
    return Frame(GOAWAY, 0, 0, struct.pack(">II", last, code))


def joined() -> tuple[Http2Connection, Http2Connection]:
    """A client and a server that have greeted each other."""
    client = Http2Connection(Http2Settings(is_client=True, header_list_size=16_384))
    server = Http2Connection(Http2Settings(is_client=False))
    exchange(client, server)
    return client, server


def exchange(client: Http2Connection, server: Http2Connection) -> list[Event]:
    """What both hear until neither has anything to say."""
    events: list[Event] = []
    while client.has_outgoing or server.has_outgoing:
        events += feed(server, client.outgoing())
        events += feed(client, server.outgoing())
    return events


def opened() -> tuple[Http2Connection, Http2Connection]:
    """`joined`, with stream 1 asked for and answered."""
    client, server = joined()
    client.open_stream("1.2.3.4:80", [])
    exchange(client, server)
    server.accept(1, [])
    exchange(client, server)
    return client, server
