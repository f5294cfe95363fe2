"""HBONE cores joined to each other, and to a peer that writes its frames by hand."""

import struct
from collections.abc import Sequence

import hpack
import pytest

from ztunnel_trio.errors import PeerBrokeProtocol, WeBrokeProtocol
from ztunnel_trio.wire.hbone import HboneConnection
from ztunnel_trio.wire.hbone_book import PREFACE, HboneSettings
from ztunnel_trio.wire.hbone_events import (
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    PingAcked,
    SettingsReceived,
    StreamEnded,
    StreamFailed,
    StreamReset,
    TunnelAnswered,
    TunnelRequested,
    WindowOpened,
)

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
Field = tuple[str, str]
CONNECT: list[Field] = [(":method", "CONNECT"), (":authority", "1.2.3.4:80")]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream_id) + payload


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    data = data.removeprefix(PREFACE)
    while data:
        length = int.from_bytes(data[:3], "big")
        stream_id = int.from_bytes(data[5:9], "big")
        found.append((data[3], data[4], stream_id, data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def decoded(decoder: hpack.Decoder, block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in decoder.decode(block)]


class Peer:
    """A client that writes what it likes to a server of ours."""

    def __init__(self, **settings: int) -> None:
        self.core = HboneConnection(HboneSettings(is_client=False, **settings))
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.greeting = frames(self.core.outgoing())
        self.say(PREFACE + frame(SETTINGS, 0, 0))
        self.core.outgoing()

    def say(self, data: bytes) -> list[Event]:
        return self.core.receive(memoryview(data))

    def headers(self, stream_id: int, fields: Sequence[Field], flags: int = 4) -> list[Event]:
        return self.say(frame(HEADERS, flags, stream_id, self.encoder.encode(fields)))

    def heard(self) -> list[tuple[int, int, int, bytes]]:
        return frames(self.core.outgoing())

    def open(self, stream_id: int = 1) -> None:
        [event] = self.headers(stream_id, CONNECT)
        assert isinstance(event, TunnelRequested)
        self.core.served(stream_id)
        self.core.accept(stream_id, [])
        self.core.outgoing()


def rst(stream_id: int, code: ErrorCode) -> tuple[int, int, int, bytes]:
    return (RST, 0, stream_id, struct.pack(">I", code))


def goaway(last: int, code: ErrorCode) -> tuple[int, int, int, bytes]:
    return (GOAWAY, 0, 0, struct.pack(">II", last, code))


def joined() -> tuple[HboneConnection, HboneConnection]:
    client = HboneConnection(HboneSettings(is_client=True, header_list_size=16_384))
    server = HboneConnection(HboneSettings(is_client=False))
    exchange(client, server)
    return client, server


def exchange(client: HboneConnection, server: HboneConnection) -> list[Event]:
    events: list[Event] = []
    while client.has_outgoing or server.has_outgoing:
        events += server.receive(memoryview(client.outgoing()))
        events += client.receive(memoryview(server.outgoing()))
    return events


def opened() -> tuple[HboneConnection, HboneConnection]:
    client, server = joined()
    client.open_stream("1.2.3.4:80", [])
    exchange(client, server)
    server.served(1)
    server.accept(1, [])
    exchange(client, server)
    return client, server


def data_frame(core: HboneConnection, payload: bytes, stream_id: int = 1) -> memoryview:
    buffer = memoryview(bytearray(9) + payload)
    core.put_data_header(buffer, stream_id, len(payload))
    return buffer


# -- set-up


def test_the_server_announces_its_settings_in_order_and_its_window() -> None:
    assert Peer().greeting == [
        (SETTINGS, 0, 0, struct.pack(">HIHIHIHI", 3, 200, 4, 4194304, 5, 1048576, 6, 65536)),
        (WINDOW, 0, 0, struct.pack(">I", 16711681)),
    ]


def test_the_client_announces_its_settings_in_order_and_its_window() -> None:
    client = HboneConnection(HboneSettings(is_client=True, header_list_size=16_384))
    out = client.outgoing()

    assert out.startswith(PREFACE)
    assert frames(out) == [
        (SETTINGS, 0, 0, struct.pack(">HIHIHIHI", 2, 0, 4, 4194304, 5, 1048576, 6, 16384)),
        (WINDOW, 0, 0, struct.pack(">I", 16711681)),
    ]


def test_a_request_may_follow_the_preface_at_once() -> None:
    client = HboneConnection(HboneSettings(is_client=True))
    client.open_stream("1.2.3.4:80", [(b"baggage", b""), (b"forwarded", b"f"), (b"traceparent", b"t")])

    kinds = frames(client.outgoing())
    assert [kind for kind, *_ in kinds] == [SETTINGS, WINDOW, HEADERS]
    assert kinds[2][1] == 4  # END_HEADERS, no END_STREAM
    assert decoded(hpack.Decoder(), kinds[2][3]) == [
        (":method", "CONNECT"),
        (":authority", "1.2.3.4:80"),
        ("baggage", ""),
        ("forwarded", "f"),
        ("traceparent", "t"),
    ]


def test_the_peers_settings_are_told() -> None:
    client, server = (
        HboneConnection(HboneSettings(is_client=True)),
        HboneConnection(HboneSettings(is_client=False)),
    )
    events = exchange(client, server)

    assert SettingsReceived(200) in events
    assert SettingsReceived(None) in events
    assert client.peer_frame_size == server.peer_frame_size == 1_048_576


# -- a tunnel's life


def test_a_tunnel_from_request_to_end() -> None:
    client, server = joined()
    stream_id = client.open_stream("h:1", [(b"baggage", b"k=v")])
    assert exchange(client, server) == [TunnelRequested(1, "CONNECT", "h:1", {"baggage": ["k=v"]})]
    server.served(1)
    server.accept(1, [(b"baggage", b"x=y")])
    assert exchange(client, server) == [TunnelAnswered(1, 200, {"baggage": ["x=y"]})]
    assert [type(event) for event in server.receive(data_frame(client, b"hello"))] == [DataReceived]
    client.end(stream_id)
    assert exchange(client, server) == [StreamEnded(1)]
    server.end(1)
    assert exchange(client, server) == [StreamEnded(1)]
    assert client.open_streams == server.open_streams == 0
    assert client.open_stream("h:1", []) == 3


def test_a_refusal_ends_the_stream_and_resets_it_with_no_error() -> None:
    peer = Peer()
    peer.headers(1, CONNECT)
    peer.core.refuse(1, 503)

    answer, reset = peer.heard()
    assert answer[:3] == (HEADERS, 5, 1)
    assert decoded(peer.decoder, answer[3]) == [(":status", "503")]
    assert reset == rst(1, ErrorCode.NO_ERROR)
    assert peer.core.open_streams == 0


def test_a_request_is_answered_once() -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(WeBrokeProtocol):
        peer.core.accept(1, [])
    with pytest.raises(WeBrokeProtocol):
        peer.core.refuse(1, 400)


def test_commands_for_streams_that_are_over_do_nothing() -> None:
    peer = Peer()
    peer.open()
    peer.core.reset(1, ErrorCode.CANCEL)
    assert peer.heard() == [rst(1, ErrorCode.CANCEL)]

    peer.core.reset(1, ErrorCode.CANCEL)
    peer.core.accept(1, [])
    peer.core.refuse(1, 400)
    peer.core.end(1)
    peer.core.credit(1, 5)
    assert peer.core.room(1) == 0
    assert peer.heard() == []


def test_trailers_end_a_stream() -> None:
    peer = Peer()
    peer.open()

    assert peer.headers(1, [("x", "y")], flags=5) == [StreamEnded(1)]


def test_informational_answers_are_passed_over() -> None:
    client, _ = joined()
    client.open_stream("h:1", [])
    encoder = hpack.Encoder()
    early = frame(HEADERS, 4, 1, encoder.encode([(":status", "103")]))
    final = frame(HEADERS, 5, 1, encoder.encode([(":status", "503")]))

    assert client.receive(memoryview(early + final)) == [TunnelAnswered(1, 503, {}), StreamEnded(1)]


def test_other_methods_and_a_missing_authority_are_handed_up() -> None:
    peer = Peer()
    get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "h:1")]

    assert peer.headers(1, get) == [TunnelRequested(1, "GET", "h:1", {})]
    assert peer.headers(3, [(":method", "CONNECT")], flags=5) == [
        TunnelRequested(3, "CONNECT", None, {}),
        StreamEnded(3),
    ]


def test_bytes_may_be_cut_anywhere() -> None:
    client, server = joined()
    client.open_stream("h:1", [])
    server.receive(memoryview(client.outgoing()))
    server.served(1)
    padded = frame(DATA, 8, 1, b"\3abc\0\0\0")
    ended = frame(DATA, 1, 1, b"d")
    whole = (
        bytes(data_frame(client, b"xyz"))
        + padded
        + frame(99, 0, 0, b"?")
        + frame(PING, 0, 0, bytes(8))
        + ended
    )
    got, ends = b"", 0
    for byte in whole:
        for event in server.receive(memoryview(bytes([byte]))):
            if isinstance(event, DataReceived):
                got += bytes(event.data)
            else:
                assert event == StreamEnded(1)
                ends += 1

    assert (got, ends) == (b"xyzabcd", 1)


# -- flow control


def test_room_is_the_smallest_of_the_windows_and_the_frame() -> None:
    client, _ = opened()
    assert client.room(1) == 1_048_576
    for _ in range(4):
        data_frame(client, bytes(1_048_576))
    assert client.room(1) == 0


def test_credit_comes_by_the_quarter_window_once_bytes_are_taken() -> None:
    client, server = opened()
    server.receive(data_frame(client, bytes(1_048_576)))
    server.credit(1, 1_048_575)
    assert not server.has_outgoing
    server.credit(1, 1)
    assert frames(server.outgoing()) == [(WINDOW, 0, 1, struct.pack(">I", 1_048_576))]
    for _ in range(3):
        server.receive(data_frame(client, bytes(1_048_576)))
        server.credit(1, 1_048_576)
    assert frames(server.outgoing())[-1] == (WINDOW, 0, 0, struct.pack(">I", 4 * 1_048_576))


def test_what_a_forgotten_stream_held_is_returned_to_the_connection() -> None:
    peer = Peer(stream_window=1000, connection_window=70_000)
    peer.open()
    for stream_id in range(3, 203, 2):
        peer.open(stream_id)
        peer.say(frame(DATA, 0, stream_id, bytes(1000)))
        peer.core.reset(stream_id, ErrorCode.CANCEL)

    assert peer.core.open_streams == 1  # 100 000 bytes went through a window of 70 000


def test_what_an_ended_stream_holds_is_returned_when_it_is_taken() -> None:
    peer = Peer(stream_window=60_000, connection_window=65_535)
    peer.open()
    peer.say(frame(DATA, 1, 1, bytes(60_000)))
    peer.core.end(1)
    assert [f[0] for f in peer.heard()] == [DATA]
    peer.open(3)
    with pytest.raises(PeerBrokeProtocol):
        Peer.say(peer, frame(DATA, 0, 3, bytes(6000)))

    peer = Peer(stream_window=60_000, connection_window=65_535)
    peer.open()
    peer.say(frame(DATA, 1, 1, bytes(60_000)))
    peer.core.end(1)
    peer.heard()
    peer.core.credit(1, 50_000)
    peer.core.credit(1, 99_999)
    peer.core.credit(1, 1)
    assert peer.heard() == [(WINDOW, 0, 0, struct.pack(">I", 50_000))]


def test_padding_is_returned_and_not_delivered() -> None:
    peer = Peer(stream_window=100, connection_window=65_535)
    peer.open()
    [event] = peer.say(frame(DATA, 8, 1, b"\x20a" + bytes(32)))

    assert isinstance(event, DataReceived)
    assert bytes(event.data) == b"a"
    assert peer.heard() == [(WINDOW, 0, 1, struct.pack(">I", 33))]


def test_a_shrunk_initial_window_may_make_room_negative() -> None:
    peer = Peer()
    peer.open()
    data_frame(peer.core, bytes(1000))
    peer.say(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 10)))
    assert peer.core.room(1) == 0
    peer.say(frame(WINDOW, 0, 1, struct.pack(">I", 990)))
    assert peer.core.room(1) == 0
    assert peer.say(frame(WINDOW, 0, 1, struct.pack(">I", 5))) == [WindowOpened(1)]
    assert peer.core.room(1) == 5


def test_data_for_a_stream_we_reset_is_dropped_in_silence_and_credited() -> None:
    peer = Peer(stream_window=1000, connection_window=65_535)
    peer.open()
    peer.core.reset(1, ErrorCode.CANCEL)
    peer.heard()

    assert peer.say(frame(DATA, 0, 1, bytes(16_384))) == []
    assert peer.heard() == [(WINDOW, 0, 0, struct.pack(">I", 16_384))]


# -- what breaks a stream

MALFORMED: list[tuple[str, list[Field]]] = [
    ("CONNECT with :scheme", [*CONNECT, (":scheme", "https")]),
    ("CONNECT with :path", [*CONNECT, (":path", "/")]),
    ("extended CONNECT", [*CONNECT, (":protocol", "websocket"), (":scheme", "https"), (":path", "/")]),
    ("no :method", [(":authority", "h:1")]),
    (":status in a request", [*CONNECT, (":status", "200")]),
    ("unparsable :authority", [(":method", "CONNECT"), (":authority", "a b:1")]),
    ("two colons in :authority", [(":method", "CONNECT"), (":authority", "a:b:1")]),
    ("empty :authority", [(":method", "CONNECT"), (":authority", "")]),
    ("GET without :scheme", [(":method", "GET"), (":path", "/"), (":authority", "h")]),
    ("GET without :path", [(":method", "GET"), (":scheme", "https"), (":authority", "h")]),
    ("GET with an empty :path", [(":method", "GET"), (":scheme", "https"), (":path", "")]),
    ("upper case", [*CONNECT, ("Baggage", "x")]),
    ("pseudo-header after a field", [(":method", "CONNECT"), ("a", "b"), (":authority", "h:1")]),
    ("pseudo-header twice", [*CONNECT, (":authority", "h:1")]),
    ("unknown pseudo-header", [*CONNECT, (":x", "y")]),
    ("connection", [*CONNECT, ("connection", "close")]),
    ("te", [*CONNECT, ("te", "gzip")]),
    ("line feed", [*CONNECT, ("a", "b\nc")]),
    ("leading space", [*CONNECT, ("a", " b")]),
]


@pytest.mark.parametrize("fields", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_request_is_reset_and_the_connection_lives(fields: list[Field]) -> None:
    peer = Peer()

    assert peer.headers(1, fields) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    assert peer.heard() == [rst(1, ErrorCode.PROTOCOL_ERROR)]
    peer.open(3)


def test_a_header_list_over_the_limit_is_answered_431() -> None:
    peer = Peer()
    assert peer.headers(1, [*CONNECT, ("a", "b" * 65_536)]) == []

    answer, reset = peer.heard()
    assert answer[:3] == (HEADERS, 5, 1)
    assert decoded(peer.decoder, answer[3]) == [(":status", "431")]
    assert reset == rst(1, ErrorCode.PROTOCOL_ERROR)
    peer.open(3)


def test_a_second_headers_without_end_stream_is_reset() -> None:
    peer = Peer()
    peer.open()

    assert peer.headers(1, [("x", "y")]) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    assert peer.heard() == [rst(1, ErrorCode.PROTOCOL_ERROR)]
    peer.open(3)


def test_headers_after_end_stream_are_reset() -> None:
    peer = Peer()
    peer.open()
    peer.say(frame(DATA, 1, 1))

    assert peer.headers(1, [("x", "y")], flags=5) == [StreamFailed(1, ErrorCode.STREAM_CLOSED)]
    assert peer.heard() == [rst(1, ErrorCode.STREAM_CLOSED)]


def test_more_data_than_the_streams_window_is_reset() -> None:
    peer = Peer(stream_window=100)
    peer.open()

    assert peer.say(frame(DATA, 0, 1, bytes(101))) == [StreamFailed(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert peer.heard() == [rst(1, ErrorCode.FLOW_CONTROL_ERROR)]


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)]
)
def test_a_senseless_window_update_resets_its_stream(increment: int, code: ErrorCode) -> None:
    peer = Peer()
    peer.open()

    assert peer.say(frame(WINDOW, 0, 1, struct.pack(">I", increment))) == [StreamFailed(1, code)]
    assert peer.heard() == [rst(1, code)]


def test_a_stream_over_the_limit_is_refused() -> None:
    peer = Peer(max_streams=2)
    peer.open(1)
    peer.open(3)

    assert peer.headers(5, CONNECT) == []
    assert peer.heard() == [rst(5, ErrorCode.REFUSED_STREAM)]
    peer.say(frame(RST, 0, 3, bytes(4)))
    peer.open(7)


def test_data_for_a_stream_long_forgotten_is_told_so() -> None:
    peer = Peer()
    peer.open()
    peer.say(frame(DATA, 1, 1))
    peer.core.end(1)
    peer.heard()

    assert peer.say(frame(DATA, 0, 1, b"late")) == []
    assert peer.heard() == [rst(1, ErrorCode.STREAM_CLOSED)]


def test_a_reset_is_told_once_and_late_frames_are_ignored() -> None:
    peer = Peer()
    peer.open()

    assert peer.say(frame(RST, 0, 1, struct.pack(">I", 8))) == [StreamReset(1, 8)]
    assert peer.say(frame(RST, 0, 1, struct.pack(">I", 8)) + frame(WINDOW, 0, 1, b"\0\0\0\1")) == []


def test_content_length_is_held_to() -> None:
    peer = Peer()
    post = [(":method", "POST"), (":scheme", "https"), (":path", "/"), ("content-length", "2")]
    peer.headers(1, post)
    assert peer.say(frame(DATA, 1, 1, b"abc")) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    peer.headers(3, post)
    assert peer.say(frame(DATA, 1, 3, b"a"))[1:] == [StreamFailed(3, ErrorCode.PROTOCOL_ERROR)]
    peer.headers(5, post)
    assert peer.say(frame(DATA, 1, 5, b"ab"))[1:] == [StreamEnded(5)]


def test_headers_for_a_stream_we_reset_are_answered_stream_closed() -> None:
    peer = Peer()
    peer.open(1)
    peer.core.reset(1, ErrorCode.CANCEL)
    peer.heard()

    assert peer.headers(1, [("a", "b")], flags=5) == []
    assert peer.heard() == [rst(1, ErrorCode.STREAM_CLOSED)]
    peer.open(3)


def test_headers_for_a_stream_that_both_have_ended_end_the_connection() -> None:
    peer = Peer()
    peer.headers(1, [(":method", "POST"), (":scheme", "https"), (":path", "/"), ("content-length", "1")])
    peer.core.served(1)
    peer.say(frame(DATA, 1, 1, b"a"))
    peer.core.accept(1, [])
    peer.core.end(1)

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.headers(1, [("a", "b")], flags=5)
    assert caught.value.code == ErrorCode.STREAM_CLOSED


def test_late_headers_are_ignored_by_the_client() -> None:
    client, server = joined()
    client.open_stream("h:1", [])
    exchange(client, server)
    client.reset(1, ErrorCode.CANCEL)
    client.outgoing()
    server.accept(1, [(b"baggage", b"x")])

    assert client.receive(memoryview(server.outgoing())) == []


def test_a_malformed_answer_is_reset() -> None:
    client, _ = joined()
    client.open_stream("h:1", [])
    answer = frame(HEADERS, 4, 1, hpack.Encoder().encode([(":status", "ok")]))

    assert client.receive(memoryview(answer)) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]


def test_malformed_trailers_are_reset() -> None:
    peer = Peer()
    peer.open()

    assert peer.headers(1, [(":status", "200")], flags=5) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]


# -- what breaks the connection

FATAL: list[tuple[str, bytes, ErrorCode]] = [
    ("DATA on an idle stream", frame(DATA, 0, 5, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("DATA on stream 0", frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    ("DATA over the frame limit", b"\x10\0\1\0\0\0\0\0\1", ErrorCode.FRAME_SIZE_ERROR),
    ("padding over the frame", frame(DATA, 8, 1, b"\5abc"), ErrorCode.PROTOCOL_ERROR),
    ("padded and empty", frame(DATA, 8, 1), ErrorCode.FRAME_SIZE_ERROR),
    ("DATA after END_STREAM", frame(DATA, 1, 1) + frame(DATA, 0, 1), ErrorCode.STREAM_CLOSED),
    ("stream id of a server", frame(HEADERS, 4, 2, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on stream 0", frame(HEADERS, 4, 0, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    ("CONTINUATION of nothing", frame(CONTINUATION, 4, 1, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    (
        "header block interrupted",
        frame(HEADERS, 0, 3, b"\x82") + frame(PING, 0, 0, bytes(8)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "header block cut by DATA",
        frame(HEADERS, 0, 3, b"\x82") + frame(DATA, 0, 1, b"x"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("bad compression", frame(HEADERS, 4, 3, b"\xff\xff\xff\xff\x0f"), ErrorCode.COMPRESSION_ERROR),
    ("push", frame(PUSH, 4, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("PING of seven", frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("PING on a stream", frame(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("SETTINGS of seven", frame(SETTINGS, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS ack with payload", frame(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, struct.pack(">HI", 2, 2)), ErrorCode.PROTOCOL_ERROR),
    ("window of 2^31", frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31)), ErrorCode.FLOW_CONTROL_ERROR),
    ("frame of 2^24", frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 2**24)), ErrorCode.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of 0", frame(WINDOW, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("WINDOW_UPDATE past the limit", frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    ("WINDOW_UPDATE on an idle stream", frame(WINDOW, 0, 9, b"\0\0\0\1"), ErrorCode.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of three", frame(WINDOW, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    ("RST_STREAM on an idle stream", frame(RST, 0, 9, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("RST_STREAM of three", frame(RST, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    ("RST_STREAM on stream 0", frame(RST, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
    ("GOAWAY on a stream", frame(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("GOAWAY of four", frame(GOAWAY, 0, 0, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ("PRIORITY on itself", frame(PRIORITY, 0, 1, b"\0\0\0\1\0"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS on itself", frame(HEADERS, 0x24, 3, b"\0\0\0\3\0\x82"), ErrorCode.PROTOCOL_ERROR),
    ("HEADERS without its priority", frame(HEADERS, 0x24, 3, b"\0\0\0\1"), ErrorCode.FRAME_SIZE_ERROR),
    ("HEADERS without its pad length", frame(HEADERS, 0x0C, 3), ErrorCode.FRAME_SIZE_ERROR),
    ("HEADERS of padding", frame(HEADERS, 0x0C, 3, b"\4\x82"), ErrorCode.PROTOCOL_ERROR),
    (
        "a header block in 66 pieces",
        frame(HEADERS, 0, 3) + 65 * frame(CONTINUATION, 0, 3),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
    ("a control frame of 1 MiB", b"\x10\0\0\x04\0\0\0\0\0", ErrorCode.ENHANCE_YOUR_CALM),
    (
        "a header block without end",
        frame(HEADERS, 0, 3, bytes(200_000)) + frame(CONTINUATION, 0, 3, bytes(200_000)),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in FATAL], ids=[row[0] for row in FATAL])
def test_a_broken_connection_ends_with_goaway(data: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(data)
    assert caught.value.code == code
    assert peer.heard()[-1][0] == GOAWAY
    assert peer.core.outgoing() == b""


def test_the_goaway_names_the_last_stream() -> None:
    peer = Peer()
    peer.open(7)

    with pytest.raises(PeerBrokeProtocol):
        peer.headers(5, CONNECT)  # RFC 9113 5.1.1: does not increase
    assert peer.heard() == [goaway(7, ErrorCode.PROTOCOL_ERROR)]


def test_the_connections_window_cannot_be_overrun() -> None:
    peer = Peer(stream_window=100_000, connection_window=65_535)
    peer.open()
    peer.say(frame(DATA, 0, 1, bytes(65_535)))

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(frame(DATA, 0, 1, b"x"))
    assert caught.value.code == ErrorCode.FLOW_CONTROL_ERROR


def test_a_window_that_settings_push_past_the_limit_is_fatal() -> None:
    peer = Peer()
    peer.open()
    peer.say(frame(WINDOW, 0, 1, struct.pack(">I", 2**31 - 1 - 65_535)))

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65_536)))
    assert caught.value.code == ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", PREFACE + frame(PING, 0, 0, bytes(8)), PREFACE + frame(SETTINGS, 1, 0)],
)
def test_a_connection_begins_with_preface_and_settings(data: bytes) -> None:
    core = HboneConnection(HboneSettings(is_client=False))

    with pytest.raises(PeerBrokeProtocol) as caught:
        core.receive(memoryview(data))
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_data_before_the_answer_is_fatal_for_the_client() -> None:
    client, _ = joined()
    client.open_stream("h:1", [])

    with pytest.raises(PeerBrokeProtocol):
        client.receive(memoryview(frame(DATA, 0, 1, b"x")))


# -- too much


def test_requests_reset_before_anybody_looked_are_limited() -> None:
    peer = Peer()
    for stream_id in range(1, 41, 2):
        peer.headers(stream_id, CONNECT)
        peer.say(frame(RST, 0, stream_id, struct.pack(">I", 8)))
    peer.headers(41, CONNECT)

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(frame(RST, 0, 41, struct.pack(">I", 8)))
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_requests_reset_after_somebody_looked_are_not() -> None:
    peer = Peer()
    for stream_id in range(1, 200, 2):
        peer.headers(stream_id, CONNECT)
        peer.core.served(stream_id)
        peer.say(frame(RST, 0, stream_id, struct.pack(">I", 8)))
    for stream_id in range(201, 401, 2):
        peer.headers(stream_id, CONNECT)
        peer.say(frame(RST, 0, stream_id, struct.pack(">I", 8)))
        peer.core.served(stream_id)

    assert peer.core.open_streams == 0


def test_stream_errors_are_limited() -> None:
    peer = Peer()
    malformed = [*CONNECT, (":path", "/")]
    for number in range(1024):
        peer.headers(2 * number + 1, malformed)
        peer.heard()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.headers(2049, malformed)
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("question", [frame(PING, 0, 0, bytes(8)), frame(SETTINGS, 0, 0)])
def test_questions_whose_answers_nobody_takes_are_limited(question: bytes) -> None:
    peer = Peer()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(question * 10_000)
    assert caught.value.code == ErrorCode.ENHANCE_YOUR_CALM


def test_header_blocks_longer_than_a_frame_are_continued() -> None:
    client, server = joined()
    value = b"b" * 16_000
    client.peer_frame_size = 6000
    client.open_stream("h:1", [(b"baggage", value)])
    out = client.outgoing()

    assert [(kind, flags) for kind, flags, _, _ in frames(out)] == [
        (HEADERS, 0),
        (CONTINUATION, 0),
        (CONTINUATION, 4),
    ]
    [asked] = server.receive(memoryview(out))
    assert isinstance(asked, TunnelRequested)
    assert asked.headers["baggage"] == [value.decode()]


def test_padding_and_priority_of_headers_mean_nothing() -> None:
    peer = Peer()
    block = hpack.Encoder().encode(CONNECT)
    [asked] = peer.say(frame(HEADERS, 0x2C, 1, b"\3\0\0\0\0\x10" + block + b"pad"))

    assert isinstance(asked, TunnelRequested)


def test_an_informational_answer_cannot_end_a_stream() -> None:
    client, server = joined()
    client.open_stream("h:1", [])
    exchange(client, server)
    block = server._h2.encoder.encode_fields([(b":status", b"100")])

    assert client.receive(memoryview(frame(HEADERS, 5, 1, block))) == [
        StreamFailed(1, ErrorCode.PROTOCOL_ERROR)
    ]


def test_few_closed_streams_are_remembered() -> None:
    client, server = joined()
    for _ in range(200):
        stream_id = client.open_stream("h:1", [])
        exchange(client, server)
        server.served(stream_id)
        server.accept(stream_id, [])
        client.end(stream_id)
        server.end(stream_id)
        exchange(client, server)

    for core in (client, server):
        assert len(core._recent) <= 16
        assert not core._h2.streams


# -- the end


def test_draining_says_goodbye_twice() -> None:
    client, server = opened()
    server.drain()
    server.drain()
    told = server.outgoing()
    assert [f[:1] + f[3:] for f in frames(told)] == [
        (GOAWAY, struct.pack(">II", 2**31 - 1, 0)),
        (PING, b"drain\0\0\0"),
    ]
    late = client.open_stream("h:2", [])  # before the GOAWAY arrives: it is served
    assert isinstance(server.receive(memoryview(client.outgoing()))[0], TunnelRequested)
    assert client.receive(memoryview(told)) == [GoAwayReceived(2**31 - 1, 0)]
    server.receive(memoryview(client.outgoing()))
    assert frames(server.outgoing()) == [goaway(late, ErrorCode.NO_ERROR)]
    later = client.open_stream("h:3", [])
    assert server.receive(memoryview(client.outgoing())) == []
    assert frames(server.outgoing()) == [rst(later, ErrorCode.REFUSED_STREAM)]
    assert not server.is_drained
    for stream_id in (1, late):
        server.reset(stream_id, ErrorCode.CANCEL)
    assert server.is_drained


def test_pings_are_answered_and_their_answers_told() -> None:
    client, server = joined()
    client.ping(b"12345678")

    assert exchange(client, server) == [PingAcked(b"12345678")]


def test_a_client_says_goodbye_naming_no_stream() -> None:
    client, _ = opened()
    client.go_away()

    assert frames(client.outgoing()) == [goaway(0, ErrorCode.NO_ERROR)]
