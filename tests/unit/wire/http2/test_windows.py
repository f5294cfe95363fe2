"""Flow control, both directions."""

import struct

import pytest

from tests.fakes.http2 import Frame, FrameFactory, Peer, data_frame, feed, opened, read_frames, rst
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import DataReceived, StreamFailed, WindowOpened
from ztunnel_trio.wire.http2.frames import DATA, WINDOW_UPDATE
from ztunnel_trio.wire.http2.settings import Http2Settings

make = FrameFactory()
INITIAL_WINDOW = 4  # RFC 9113 6.5.2


def server(stream_window: int, connection_window: int) -> Http2Settings:
    return Http2Settings(is_client=False, stream_window=stream_window, connection_window=connection_window)


def credit(stream_id: int, increment: int) -> Frame:
    return Frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))


def test_room_is_the_smallest_of_the_windows_and_the_frame() -> None:
    client, _ = opened()
    assert client.room(1) == 1_048_576
    for _ in range(4):
        data_frame(client, bytes(1_048_576))
    assert client.room(1) == 0


def test_credit_comes_by_the_quarter_window_once_bytes_are_taken() -> None:
    client, server = opened()
    feed(server, data_frame(client, bytes(1_048_576)))
    server.credit(1, 1_048_575)
    assert not server.has_outgoing
    server.credit(1, 1)
    assert list(read_frames(server.outgoing())) == [credit(1, 1_048_576)]
    for _ in range(3):
        feed(server, data_frame(client, bytes(1_048_576)))
        server.credit(1, 1_048_576)
    assert list(read_frames(server.outgoing()))[-1] == credit(0, 4 * 1_048_576)


def test_what_a_forgotten_stream_held_is_returned_to_the_connection() -> None:
    peer = Peer(server(1000, 70_000))
    peer.open()
    for stream_id in range(3, 203, 2):
        peer.open(stream_id)
        peer.say(make.data(stream_id, bytes(1000)))
        peer.core.reset(stream_id, ErrorCode.CANCEL)

    assert peer.core.open_streams == 1  # 100 000 bytes went through a window of 70 000


def ended_with_bytes_left() -> Peer:
    peer = Peer(server(60_000, 65_535))
    peer.open()
    peer.say(make.data(1, bytes(60_000), ends=True))
    peer.core.end(1)
    assert [frame.kind for frame in peer.heard()] == [DATA]
    return peer


def test_what_an_ended_stream_holds_is_kept_from_the_connection() -> None:
    peer = ended_with_bytes_left()
    peer.open(3)

    with pytest.raises(PeerBrokeProtocol):
        peer.say(make.data(3, bytes(6000)))


def test_what_an_ended_stream_holds_is_returned_when_it_is_taken() -> None:
    peer = ended_with_bytes_left()
    peer.core.credit(1, 50_000)
    peer.core.credit(1, 99_999)
    peer.core.credit(1, 1)

    assert peer.heard() == [credit(0, 50_000)]


def test_padding_is_returned_and_not_delivered() -> None:
    peer = Peer(server(100, 65_535))
    peer.open()
    [event] = peer.say(make.padded(1, b"a", 32))

    assert isinstance(event, DataReceived)
    assert bytes(event.data) == b"a"
    assert peer.heard() == [credit(1, 33)]


def test_a_shrunk_initial_window_may_make_room_negative() -> None:
    peer = Peer()
    peer.open()
    data_frame(peer.core, bytes(1000))
    peer.say(make.settings({INITIAL_WINDOW: 10}))
    assert peer.core.room(1) == 0
    peer.say(make.window_update(1, 990))
    assert peer.core.room(1) == 0
    assert peer.say(make.window_update(1, 5)) == [WindowOpened(1)]
    assert peer.core.room(1) == 5


def test_more_data_than_the_streams_window_is_reset() -> None:
    peer = Peer(server(100, 65_535))
    peer.open()

    assert peer.say(make.data(1, bytes(101))) == [StreamFailed(1, ErrorCode.FLOW_CONTROL_ERROR)]
    assert peer.heard() == [rst(1, ErrorCode.FLOW_CONTROL_ERROR)]


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)]
)
def test_a_senseless_window_update_resets_its_stream(increment: int, code: ErrorCode) -> None:
    peer = Peer()
    peer.open()

    assert peer.say(make.window_update(1, increment)) == [StreamFailed(1, code)]
    assert peer.heard() == [rst(1, code)]


@pytest.mark.parametrize(
    ("increment", "code"), [(0, ErrorCode.PROTOCOL_ERROR), (2**31 - 1, ErrorCode.FLOW_CONTROL_ERROR)]
)
def test_a_senseless_window_update_of_the_connection_ends_it(increment: int, code: ErrorCode) -> None:
    peer = Peer()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(make.window_update(0, increment))
    assert caught.value.code == code


def test_the_connections_window_cannot_be_overrun() -> None:
    peer = Peer(server(100_000, 65_535))
    peer.open()
    peer.say(make.data(1, bytes(65_535)))

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(make.data(1, b"x"))
    assert caught.value.code == ErrorCode.FLOW_CONTROL_ERROR


def test_a_window_that_settings_push_past_the_limit_is_fatal() -> None:
    peer = Peer()
    peer.open()
    peer.say(make.window_update(1, 2**31 - 1 - 65_535))

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(make.settings({INITIAL_WINDOW: 65_536}))
    assert caught.value.code == ErrorCode.FLOW_CONTROL_ERROR
