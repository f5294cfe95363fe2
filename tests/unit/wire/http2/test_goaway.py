"""The end of a connection, announced by us and by the peer."""

import struct

import pytest

from tests.fakes.http2 import FrameFactory, Peer, exchange, feed, goaway, joined, opened, read_frames, rst
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import GoAwayReceived, TunnelRequested
from ztunnel_trio.wire.http2.frames import GOAWAY, PING

make = FrameFactory()


def test_draining_says_goodbye_twice() -> None:
    client, server = opened()
    server.drain()
    server.drain()
    told = server.outgoing()
    assert [(frame.kind, frame.payload) for frame in read_frames(told)] == [
        (GOAWAY, struct.pack(">II", 2**31 - 1, 0)),
        (PING, b"drain\0\0\0"),
    ]
    late = client.open_stream("h:2", [])  # before the GOAWAY arrives: it is served
    assert isinstance(feed(server, client.outgoing())[0], TunnelRequested)
    assert feed(client, told) == [GoAwayReceived(2**31 - 1, 0)]
    feed(server, client.outgoing())
    assert list(read_frames(server.outgoing())) == [goaway(late, ErrorCode.NO_ERROR)]
    later = client.open_stream("h:3", [])
    assert feed(server, client.outgoing()) == []
    assert list(read_frames(server.outgoing())) == [rst(later, ErrorCode.REFUSED_STREAM)]
    assert not server.is_drained
    for stream_id in (1, late):
        server.reset(stream_id, ErrorCode.CANCEL)
    assert server.is_drained


def test_a_client_says_goodbye_naming_no_stream() -> None:
    client, _ = opened()
    client.go_away()

    assert list(read_frames(client.outgoing())) == [goaway(0, ErrorCode.NO_ERROR)]


def test_a_reason_may_go_with_the_last_word() -> None:
    client, server = joined()
    server.go_away(ErrorCode.INADEQUATE_SECURITY, b"no identity")

    assert exchange(client, server) == [GoAwayReceived(0, ErrorCode.INADEQUATE_SECURITY, (), b"no identity")]


def test_what_a_goaway_left_out_is_told_and_forgotten() -> None:
    client, _ = joined()
    for _ in range(3):
        client.open_stream("h:1", [])
    client.outgoing()

    assert feed(client, make.goaway(1)) == [GoAwayReceived(1, ErrorCode.NO_ERROR, (3, 5))]
    assert client.open_streams == 1
    assert client.outgoing() == b""


def test_a_goaway_does_not_name_streams_of_a_client_to_a_server() -> None:
    peer = Peer()
    peer.open()

    assert peer.say(make.goaway(0)) == [GoAwayReceived(0, ErrorCode.NO_ERROR)]
    assert peer.core.is_open(1)


def test_a_reason_is_kept_as_far_as_a_line_has_room() -> None:
    peer = Peer()
    [event] = peer.say(make.goaway(0, ErrorCode.NO_ERROR, b"r" * 10_000))

    assert event == GoAwayReceived(0, ErrorCode.NO_ERROR, (), b"r" * 128)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (make.raw(GOAWAY, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (make.raw(GOAWAY, 0, 0, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ],
    ids=["on a stream", "of four"],
)
def test_a_goaway_that_is_none_ends_the_connection(data: bytes, code: ErrorCode) -> None:
    with pytest.raises(PeerBrokeProtocol) as caught:
        Peer().say(data)
    assert caught.value.code == code
