"""Whatever a peer writes ends in `PeerBrokeProtocol` with a code of RFC 9113 7, or in nothing."""

import struct

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.http2 import feed
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import BoundedDecoder
from ztunnel_trio.wire.http2.connection import Http2Connection
from ztunnel_trio.wire.http2.events import DataReceived, StreamEnded, TunnelRequested
from ztunnel_trio.wire.http2.frames import PREFACE
from ztunnel_trio.wire.http2.settings import Http2Settings

PLAIN = [(":method", "POST"), (":scheme", "https"), (":path", "/"), ("content-length", "3")]
POST = hpack.Encoder().encode(PLAIN)
TRAILERS = hpack.Encoder().encode([("a", "b")])
EARLY = hpack.Encoder().encode([(":status", "103")])
LONG = hpack.Encoder().encode([(":status", "200"), ("content-length", "3")])
CONNECT = hpack.Encoder().encode([(":method", "CONNECT"), (":authority", "h:1")])


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream_id) + payload


payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", bytes(4), bytes(5), bytes(6), bytes(8), struct.pack(">HI", 4, 0), b"\x88", b"abc"]),
    st.sampled_from([CONNECT, POST, TRAILERS, EARLY, LONG]),
)
stream_ids = st.sampled_from([0, 1, 1, 1, 2, 3, 5, 2**31 - 1])
any_frame = st.one_of(
    st.builds(frame, st.integers(0, 11), st.integers(0, 255), stream_ids, payloads),
    st.builds(frame, st.sampled_from([0, 1, 1, 3]), st.sampled_from([0, 1, 4, 5]), stream_ids, payloads),
    st.builds(frame, st.just(1), st.sampled_from([4, 5]), st.sampled_from([1, 3]), payloads),
)


def check_fed(core: Http2Connection, pieces: list[bytes]) -> None:
    try:
        for piece in pieces:
            for event in feed(core, piece):
                if isinstance(event, DataReceived):
                    core.credit(event.stream_id, len(event.data))
                elif isinstance(event, TunnelRequested):
                    if event.method == "CONNECT":
                        core.accept(event.stream_id, [])
                    elif event.stream_id == 1:
                        core.refuse(event.stream_id, 400)
                elif isinstance(event, StreamEnded):
                    core.end(event.stream_id)
    except PeerBrokeProtocol as broken:
        code = broken.code
    else:
        return
    assert code in set(ErrorCode)
    assert b"\x07\0\0\0\0\0" in core.outgoing()


@settings(max_examples=300, deadline=None)
@given(st.lists(any_frame, max_size=12), st.booleans())
def test_frames_without_sense_break_nothing_of_ours(sent: list[bytes], is_client: bool) -> None:
    core = Http2Connection(Http2Settings(is_client=is_client))
    if is_client:
        core.open_stream("h:1", [])
        core.open_stream("h:1", [])
    start = frame(4, 0, 0, b"") if is_client else PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, CONNECT)
    check_fed(core, [start, *sent])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_bytes_without_sense_break_nothing_of_ours(sent: bytes, is_client: bool, greets: bool) -> None:
    core = Http2Connection(Http2Settings(is_client=is_client))
    check_fed(core, [(b"" if is_client else PREFACE) + frame(4, 0, 0, b"")] if greets else [])
    check_fed(core, [sent])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([CONNECT, POST, b"\x82\xbe", b"\x3f\xe1\x1f"]), max_size=4
    )
)
def test_blocks_are_decoded_as_hpack_decodes_them(blocks: list[bytes]) -> None:
    ours, theirs = BoundedDecoder(1 << 20), hpack.Decoder(max_header_list_size=1 << 20)
    for block in blocks:
        expected: list[tuple[bytes, bytes]] | None
        try:
            expected = [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            expected = None
        if expected is None:
            with pytest.raises(hpack.HPACKError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_payload_arrives_whatever_the_cuts(payload: list[bytes], cuts: list[int]) -> None:
    client, server = (
        Http2Connection(Http2Settings(is_client=True)),
        Http2Connection(Http2Settings(is_client=False)),
    )
    client.open_stream("h:1", [])
    sent = client.outgoing()
    for piece in payload:
        buffer = memoryview(bytearray(9) + piece)
        client.put_data_header(buffer, 1, len(piece))
        sent += bytes(buffer)
    client.end(1)
    sent += client.outgoing()
    got, position, number = b"", 0, 0
    while position < len(sent):
        cut = cuts[number % len(cuts)]
        for event in feed(server, sent[position : position + cut]):
            if isinstance(event, DataReceived):
                got += bytes(event.data)
        position, number = position + cut, number + 1

    assert got == b"".join(payload)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5000), max_size=30))
def test_credit_never_exceeds_what_was_taken(amounts: list[int]) -> None:
    client = Http2Connection(Http2Settings(is_client=True))
    server = Http2Connection(Http2Settings(is_client=False, stream_window=8192, connection_window=65_535))
    client.open_stream("h:1", [])
    for _ in range(2):
        feed(server, client.outgoing())
        feed(client, server.outgoing())
    for amount in amounts:
        room = min(client.room(1), amount)
        if room:
            buffer = memoryview(bytearray(9 + room))
            client.put_data_header(buffer, 1, room)
            for event in feed(server, buffer):
                assert isinstance(event, DataReceived)
                server.credit(1, len(event.data))
        feed(client, server.outgoing())

    assert 8192 * 3 // 4 <= client.room(1) <= 8192


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=300)), max_size=12), st.integers(1, 40))
def test_h2_and_we_understand_each_other(said: list[tuple[bool, bytes]], cut: int) -> None:
    """Whole connections against another implementation: greeting, CONNECT, payload both ways, both ends."""
    ours = Http2Connection(Http2Settings(is_client=False))
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    theirs.initiate_connection()
    theirs.send_headers(1, [(":method", "CONNECT"), (":authority", "h:1")])
    got: dict[str, bytes] = {"ours": b"", "theirs": b""}
    heard: list[object] = []

    def exchange() -> None:
        while sent := theirs.data_to_send():
            for start in range(0, len(sent), cut):
                for event in feed(ours, sent[start : start + cut]):
                    if isinstance(event, DataReceived):
                        got["ours"] += bytes(event.data)
                        ours.credit(event.stream_id, len(event.data))
                    elif isinstance(event, TunnelRequested):
                        ours.accept(event.stream_id, [(b"baggage", b"k=v")])
                    heard.append(type(event))
            for heard_event in theirs.receive_data(ours.outgoing()):
                if isinstance(heard_event, h2.events.DataReceived):
                    got["theirs"] += heard_event.data or b""

    exchange()
    for is_ours, payload in said:
        if is_ours and payload:
            buffer = memoryview(bytearray(9) + payload)
            ours.put_data_header(buffer, 1, len(payload))
            for event in theirs.receive_data(bytes(buffer)):
                if isinstance(event, h2.events.DataReceived):
                    got["theirs"] += event.data or b""
        elif not is_ours:
            theirs.send_data(1, payload)
        exchange()
    theirs.end_stream(1)
    ours.end(1)
    theirs.receive_data(ours.outgoing())
    exchange()

    assert got["ours"] == b"".join(payload for is_ours, payload in said if not is_ours)
    assert got["theirs"] == b"".join(payload for is_ours, payload in said if is_ours)
    assert heard[-1] is StreamEnded
    assert ours.open_streams == 0
