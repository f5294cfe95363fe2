"""Connections joined to each other: greeting, a tunnel's life, cuts, turns, the end."""

import struct

import pytest

from tests.fakes.http2 import (
    CONNECT,
    FrameFactory,
    Peer,
    data_frame,
    exchange,
    feed,
    goaway,
    joined,
    opened,
    read_frames,
    rst,
)
from ztunnel_trio.errors import PeerBrokeProtocol, WeBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import DATA_A_STEP, Http2Connection
from ztunnel_trio.wire.http2.events import (
    DataReceived,
    SettingsReceived,
    StreamEnded,
    TunnelAnswered,
    TunnelRequested,
)
from ztunnel_trio.wire.http2.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from ztunnel_trio.wire.http2.settings import Http2Settings

make = FrameFactory()


# -- set-up


def test_the_server_announces_its_settings_in_order_and_its_window() -> None:
    settings, window = Peer().greeting

    assert (settings.kind, settings.payload) == (
        SETTINGS,
        struct.pack(">HIHIHIHI", 3, 200, 4, 4194304, 5, 1048576, 6, 65536),
    )
    assert (window.kind, window.payload) == (WINDOW_UPDATE, struct.pack(">I", 16711681))


def test_the_client_announces_its_settings_in_order_and_its_window() -> None:
    client = Http2Connection(Http2Settings(is_client=True, header_list_size=16_384))
    out = client.outgoing()
    settings, window = read_frames(out)

    assert out.startswith(PREFACE)
    assert (settings.kind, settings.payload) == (
        SETTINGS,
        struct.pack(">HIHIHIHI", 2, 0, 4, 4194304, 5, 1048576, 6, 16384),
    )
    assert (window.kind, window.payload) == (WINDOW_UPDATE, struct.pack(">I", 16711681))


def test_a_request_may_follow_the_preface_at_once() -> None:
    client = Http2Connection(Http2Settings(is_client=True))
    client.open_stream("1.2.3.4:80", [(b"baggage", b""), (b"forwarded", b"f"), (b"traceparent", b"t")])

    settings, window, request = read_frames(client.outgoing())
    assert [settings.kind, window.kind, request.kind] == [SETTINGS, WINDOW_UPDATE, HEADERS]
    assert request.flags == 4  # END_HEADERS, no END_STREAM
    assert Peer().fields(request) == [
        (":method", "CONNECT"),
        (":authority", "1.2.3.4:80"),
        ("baggage", ""),
        ("forwarded", "f"),
        ("traceparent", "t"),
    ]


def test_the_peers_settings_are_told() -> None:
    client = Http2Connection(Http2Settings(is_client=True))
    server = Http2Connection(Http2Settings(is_client=False))
    events = exchange(client, server)

    assert SettingsReceived(200) in events
    assert SettingsReceived(None) in events


# -- a tunnel's life


def test_a_tunnel_from_request_to_end() -> None:
    client, server = joined()
    stream_id = client.open_stream("h:1", [(b"baggage", b"k=v")])
    assert exchange(client, server) == [TunnelRequested(1, "CONNECT", "h:1", {"baggage": ["k=v"]})]
    server.accept(1, [(b"baggage", b"x=y")])
    assert exchange(client, server) == [TunnelAnswered(1, 200, {"baggage": ["x=y"]})]
    assert [type(event) for event in feed(server, data_frame(client, b"hello"))] == [DataReceived]
    client.end(stream_id)
    assert exchange(client, server) == [StreamEnded(1)]
    server.end(1)
    assert exchange(client, server) == [StreamEnded(1)]
    server.credit(1, 5)
    assert client.open_streams == server.open_streams == 0
    assert client.open_stream("h:1", []) == 3


def test_a_refusal_ends_the_stream_and_resets_it_with_no_error() -> None:
    peer = Peer()
    peer.headers(1, CONNECT)
    peer.core.refuse(1, 503)

    answer, reset = peer.heard()
    assert (answer.kind, answer.flags) == (HEADERS, 5)
    assert peer.fields(answer) == [(":status", "503")]
    assert reset == rst(1, ErrorCode.NO_ERROR)
    assert peer.core.open_streams == 0


def test_a_refusal_of_a_request_that_has_ended_needs_no_reset() -> None:
    peer = Peer(Http2Settings(is_client=False, connection_window=65_535))
    peer.headers(1, CONNECT)
    peer.say(make.data(1, bytes(65_535), ends=True))
    peer.core.refuse(1, 503)

    credit, answer = sorted(peer.heard(), key=lambda frame: -frame.kind)
    assert (credit.kind, credit.payload) == (WINDOW_UPDATE, struct.pack(">I", 65_535))
    assert answer.kind == HEADERS
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


def test_few_closed_streams_are_remembered() -> None:
    client, server = joined()
    for _ in range(200):
        stream_id = client.open_stream("h:1", [])
        exchange(client, server)
        server.accept(stream_id, [])
        client.end(stream_id)
        server.end(stream_id)
        exchange(client, server)

    for core in (client, server):
        streams = core._ledger.streams
        assert len(streams._recent) <= 16
        assert not streams.by_id
        assert not streams._skipped


# -- cuts and turns


def test_bytes_may_be_cut_anywhere() -> None:
    client, server = joined()
    client.open_stream("h:1", [])
    feed(server, client.outgoing())
    whole = (
        bytes(data_frame(client, b"xyz"))
        + make.padded(1, b"abc", 3)
        + make.raw(99, 0, 0, b"?")
        + make.ping()
        + make.data(1, b"d", ends=True)
    )
    got, ends = b"", 0
    for byte in whole:
        for event in feed(server, bytes([byte])):
            if isinstance(event, DataReceived):
                got += bytes(event.data)
            else:
                assert event == StreamEnded(1)
                ends += 1

    assert (got, ends) == (b"xyzabcd", 1)


def test_one_step_acts_on_few_frames_and_says_how_far_it_came() -> None:
    peer = Peer()
    peer.open()
    one = make.data(1, b"x")
    many = memoryview(one * 1000)

    assert len(peer.core.receive(many, 0.0)) == DATA_A_STEP
    assert peer.core.taken == DATA_A_STEP * len(one)
    assert len(peer.say(many[peer.core.taken :].tobytes())) == 1000 - DATA_A_STEP


def test_a_step_with_frames_that_are_no_data_is_shorter() -> None:
    peer = Peer()
    requests = b"".join([peer.make.headers(stream_id, CONNECT) for stream_id in range(1, 101, 2)])

    assert 0 < len(peer.core.receive(memoryview(requests), 0.0)) <= DATA_A_STEP // 8


# -- the order of frames


FATAL = [
    ("DATA over the frame limit", b"\x10\0\1\0\0\0\0\0\1", ErrorCode.FRAME_SIZE_ERROR),
    ("CONTINUATION of nothing", make.continuation(1, b"\x82", 4), ErrorCode.PROTOCOL_ERROR),
    (
        "header block interrupted",
        make.raw(HEADERS, 0, 3, b"\x82") + make.ping(),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "header block cut by DATA",
        make.raw(HEADERS, 0, 3, b"\x82") + make.data(1, b"x"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    (
        "header block cut by another's",
        make.raw(HEADERS, 0, 3, b"\x82") + make.continuation(1, b"", 4),
        ErrorCode.PROTOCOL_ERROR,
    ),
    ("push", make.raw(PUSH_PROMISE, 4, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("a control frame of 1 MiB", b"\x10\0\0\x07\0\0\0\0\0", ErrorCode.ENHANCE_YOUR_CALM),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in FATAL], ids=[row[0] for row in FATAL])
def test_a_broken_connection_ends_with_goaway(data: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(data)
    assert caught.value.code == code
    assert peer.heard()[-1].kind == GOAWAY
    assert peer.core.outgoing() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + make.ping(),
        PREFACE + make.settings(ack=True),
        PREFACE + make.data(1),
    ],
)
def test_a_connection_begins_with_preface_and_settings(data: bytes) -> None:
    core = Http2Connection(Http2Settings(is_client=False))

    with pytest.raises(PeerBrokeProtocol) as caught:
        feed(core, data)
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_header_blocks_longer_than_a_frame_are_continued() -> None:
    client, server = joined()
    value = b"b" * 16_000
    client._ledger.out.frame_size = 6000
    client.open_stream("h:1", [(b"baggage", value)])
    out = client.outgoing()

    assert [(frame.kind, frame.flags) for frame in read_frames(out)] == [
        (HEADERS, 0),
        (CONTINUATION, 0),
        (CONTINUATION, 4),
    ]
    [asked] = feed(server, out)
    assert isinstance(asked, TunnelRequested)
    assert asked.headers["baggage"] == [value.decode()]


def test_data_carries_what_its_header_says() -> None:
    client, _ = opened()

    [frame] = read_frames(bytes(data_frame(client, b"hello")))
    assert (frame.kind, frame.flags, frame.stream_id, frame.payload) == (DATA, 0, 1, b"hello")


def test_the_goaway_names_the_last_stream() -> None:
    peer = Peer()
    peer.open(7)

    with pytest.raises(PeerBrokeProtocol):
        peer.headers(5, CONNECT)  # RFC 9113 5.1.1: does not increase
    assert peer.heard() == [goaway(7, ErrorCode.PROTOCOL_ERROR)]


def test_no_frame_of_a_known_kind_is_passed_over_in_silence() -> None:
    peer = Peer()
    peer.open()

    assert peer.say(make.ping(b"12345678")) == []
    [answer] = peer.heard()
    assert (answer.kind, answer.flags, answer.payload) == (PING, 1, b"12345678")
    peer.say(make.settings())
    [answer] = peer.heard()
    assert (answer.kind, answer.flags, answer.payload) == (SETTINGS, 1, b"")
    peer.say(make.reset(1))
    assert peer.core.open_streams == 0
    assert RST_STREAM not in [frame.kind for frame in peer.heard()]
