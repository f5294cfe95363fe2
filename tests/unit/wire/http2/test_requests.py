"""Requests at the server."""

import pytest

from tests.fakes.http2 import CONNECT, FrameFactory, Peer, TextField, rst
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import StreamEnded, StreamFailed, TunnelRequested
from ztunnel_trio.wire.http2.frames import HEADERS
from ztunnel_trio.wire.http2.settings import Http2Settings

make = FrameFactory()

MALFORMED: list[tuple[str, list[TextField]]] = [
    ("CONNECT with :scheme", [*CONNECT, (":scheme", "https")]),
    ("CONNECT with :path", [*CONNECT, (":path", "/")]),
    ("extended CONNECT", [*CONNECT, (":protocol", "websocket"), (":scheme", "https"), (":path", "/")]),
    ("no :method", [(":authority", "h:1")]),
    (":status in a request", [*CONNECT, (":status", "200")]),
    ("unparsable :authority", [(":method", "CONNECT"), (":authority", "a b:1")]),
    ("two colons in :authority", [(":method", "CONNECT"), (":authority", "a:b:1")]),
    ("empty :authority", [(":method", "CONNECT"), (":authority", "")]),
    ("a name of 254", [(":method", "CONNECT"), (":authority", "a" * 254 + ":65535")]),
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
    ("content-length", [*CONNECT, ("content-length", "many")]),
]


@pytest.mark.parametrize("fields", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_a_malformed_request_is_reset_and_the_connection_lives(fields: list[TextField]) -> None:
    peer = Peer()

    assert peer.headers(1, fields) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    assert peer.heard() == [rst(1, ErrorCode.PROTOCOL_ERROR)]
    peer.open(3)


def test_other_methods_and_a_missing_authority_are_handed_up() -> None:
    peer = Peer()
    get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "h:1")]

    assert peer.headers(1, get) == [TunnelRequested(1, "GET", "h:1", {})]
    assert peer.headers(3, [(":method", "CONNECT")], flags=5) == [
        TunnelRequested(3, "CONNECT", None, {}),
        StreamEnded(3),
    ]


@pytest.mark.parametrize("length", [65_536, 84_000])
def test_a_header_list_over_the_limit_is_answered_431(length: int) -> None:
    peer = Peer()
    assert peer.headers(1, [*CONNECT, ("a", "o" * length)]) == []  # five bits each (RFC 7541 Appendix B)

    answer, reset = peer.heard()
    assert (answer.kind, answer.flags) == (HEADERS, 5)
    assert peer.fields(answer) == [(":status", "431")]
    assert reset == rst(1, ErrorCode.PROTOCOL_ERROR)
    peer.open(3)


def test_a_stream_over_the_limit_is_refused() -> None:
    peer = Peer(Http2Settings(is_client=False, max_streams=2))
    peer.open(1)
    peer.open(3)

    assert peer.headers(5, CONNECT) == []
    assert peer.heard() == [rst(5, ErrorCode.REFUSED_STREAM)]
    peer.say(make.reset(3))
    peer.open(7)


def test_a_request_that_ends_has_no_length_left() -> None:
    peer = Peer()
    post = [(":method", "POST"), (":scheme", "https"), (":path", "/"), ("content-length", "1")]

    assert peer.headers(1, post, flags=5) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
