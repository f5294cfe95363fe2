"""DATA frames that are not the usual ones."""

import pytest

from tests.fakes.http2 import FrameFactory, Peer, feed, joined
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import DataReceived, StreamEnded, StreamFailed
from ztunnel_trio.wire.http2.frames import DATA, PADDED

make = FrameFactory()
POST = [(":method", "POST"), (":scheme", "https"), (":path", "/"), ("content-length", "2")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (make.raw(DATA, PADDED, 1, b"\5abc"), ErrorCode.PROTOCOL_ERROR),
        (make.raw(DATA, PADDED, 1), ErrorCode.FRAME_SIZE_ERROR),
    ],
    ids=["padding over the frame", "padded and empty"],
)
def test_padding_fits_into_its_frame(data: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(data)
    assert caught.value.code == code


def test_content_length_is_held_to() -> None:
    peer = Peer()
    peer.headers(1, POST)
    assert peer.say(make.data(1, b"abc", ends=True)) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    peer.headers(3, POST)
    assert peer.say(make.data(3, b"a", ends=True))[1:] == [StreamFailed(3, ErrorCode.PROTOCOL_ERROR)]
    peer.headers(5, POST)
    assert peer.say(make.data(5, b"ab", ends=True))[1:] == [StreamEnded(5)]


def test_data_before_the_answer_is_fatal_for_the_client() -> None:
    client, _ = joined()
    client.open_stream("h:1", [])

    with pytest.raises(PeerBrokeProtocol):
        feed(client, make.data(1, b"x"))


def test_a_payload_is_passed_on_as_it_comes() -> None:
    peer = Peer()
    peer.open()
    whole = make.data(1, b"abcdef", ends=True)

    [first] = peer.say(whole[:12])
    assert isinstance(first, DataReceived)
    assert bytes(first.data) == b"abc"
    second, end = peer.say(whole[12:])
    assert isinstance(second, DataReceived)
    assert bytes(second.data) == b"def"
    assert end == StreamEnded(1)


def test_a_stream_may_be_reset_in_the_middle_of_a_payload() -> None:
    peer = Peer()
    peer.open()
    whole = make.padded(1, b"abcdef", 5, ends=True)
    peer.say(whole[:12])
    peer.core.reset(1, ErrorCode.CANCEL)

    assert peer.say(whole[12:]) == []
    peer.open(3)
