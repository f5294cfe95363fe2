"""SETTINGS, PING, PRIORITY and the others that carry nothing."""

import struct

import pytest

from tests.fakes.http2 import FrameFactory, Peer, exchange, joined
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import PingAcked, SettingsReceived, WindowOpened
from ztunnel_trio.wire.http2.frames import PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE

make = FrameFactory()

WRONG = [
    ("PING of seven", make.raw(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("PING on a stream", make.raw(PING, 0, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
    ("SETTINGS of seven", make.raw(SETTINGS, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS of 129", make.raw(SETTINGS, 0, 0, bytes(6 * 129)), ErrorCode.ENHANCE_YOUR_CALM),
    ("SETTINGS ack with payload", make.raw(SETTINGS, 1, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", make.raw(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    ("ENABLE_PUSH of 2", make.settings({2: 2}), ErrorCode.PROTOCOL_ERROR),
    ("window of 2^31", make.settings({4: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    ("frame of 2^24", make.settings({5: 2**24}), ErrorCode.PROTOCOL_ERROR),
    ("WINDOW_UPDATE of three", make.raw(WINDOW_UPDATE, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    ("RST_STREAM of three", make.raw(RST_STREAM, 0, 1, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
    ("PRIORITY of four", make.raw(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
    ("PRIORITY on itself", make.priority(1, depends_on=1), ErrorCode.PROTOCOL_ERROR),
    ("PRIORITY on stream 0", make.priority(0, depends_on=1), ErrorCode.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("data", "code"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_makes_no_sense_ends_the_connection(data: bytes, code: ErrorCode) -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(data)
    assert caught.value.code == code


def test_pings_are_answered_and_their_answers_told() -> None:
    client, server = joined()
    client.ping(b"12345678")

    assert exchange(client, server) == [PingAcked(b"12345678")]


def test_priority_and_unknown_kinds_mean_nothing() -> None:
    peer = Peer()

    assert peer.say(make.priority(1) + make.raw(99, 255, 7, b"?")) == []
    assert peer.heard() == []


def test_the_last_value_of_a_setting_counts() -> None:
    peer = Peer()
    peer.open()
    values = b"".join(struct.pack(">HI", 4, size) for size in (1, 2, 30))

    assert peer.say(make.raw(SETTINGS, 0, 0, values)) == [SettingsReceived(None), WindowOpened(0)]
    assert peer.core.room(1) == 30


def test_settings_nobody_knows_are_passed_over() -> None:
    peer = Peer()

    assert peer.say(make.settings({0x0A0A: 1, 3: 7})) == [SettingsReceived(7), WindowOpened(0)]


def test_our_encoder_keeps_to_the_table_the_peer_has() -> None:
    peer = Peer()
    peer.decoder.max_allowed_table_size = 0
    peer.decoder.header_table_size = 0
    peer.say(make.settings({1: 0}))
    peer.heard()
    for stream_id in (1, 3):
        peer.headers(stream_id, [(":method", "CONNECT"), (":authority", "h:1")])
        peer.core.accept(stream_id, [(b"baggage", b"k=v")])

        [answer] = peer.heard()
        assert peer.fields(answer) == [(":status", "200"), ("baggage", "k=v")]
