"""What each input means in each state of a stream."""

import pytest

from tests.fakes.http2 import CONNECT, FrameFactory, Peer, feed, joined, rst
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import ResetReceived, StreamEnded, StreamFailed
from ztunnel_trio.wire.http2.frames import WINDOW_UPDATE
from ztunnel_trio.wire.http2.settings import Http2Settings
from ztunnel_trio.wire.http2.streams import FAULTS, Input, State

make = FrameFactory()
TRAILERS = [("a", "b")]


def closed_by(how: str) -> Peer:
    """A peer whose stream 1 was closed in one of the ways there are."""
    peer = Peer()
    if how == "skipped":
        peer.open(3)
        return peer
    peer.open()
    if how in ("ended", "lingering"):
        peer.say(make.data(1, b"x", ends=True))
        peer.core.end(1)
        if how == "ended":
            peer.core.credit(1, 1)
    elif how == "reset by us":
        peer.core.reset(1, ErrorCode.CANCEL)
    elif how == "reset by the peer":
        peer.say(make.reset(1))
    elif how == "forgotten":
        for stream_id in range(3, 45, 2):
            peer.open(stream_id)
            peer.core.reset(stream_id, ErrorCode.CANCEL)
        peer.core.reset(1, ErrorCode.CANCEL)
        for stream_id in range(45, 85, 2):
            peer.open(stream_id)
            peer.core.reset(stream_id, ErrorCode.CANCEL)
    peer.heard()
    return peer


CLOSED = ["ended", "lingering", "reset by us", "reset by the peer", "forgotten"]


def test_every_state_answers_every_input_or_allows_it() -> None:
    assert set(FAULTS) == set(State)
    assert {what for faults in FAULTS.values() for what in faults} == set(Input)


@pytest.mark.parametrize("how", [*CLOSED, "skipped"])
def test_late_window_updates_and_resets_mean_nothing(how: str) -> None:
    peer = closed_by(how)

    assert peer.say(make.window_update(1, 1) + make.reset(1)) == []
    assert peer.heard() == []


@pytest.mark.parametrize("how", ["ended", "lingering", "reset by the peer", "forgotten", "skipped"])
def test_late_data_is_dropped_and_told_so(how: str) -> None:
    peer = closed_by(how)

    assert peer.say(make.data(1, b"late")) == []
    assert peer.heard() == [rst(1, ErrorCode.STREAM_CLOSED)]


def test_data_for_a_stream_we_reset_is_dropped_in_silence_and_credited() -> None:
    peer = Peer(Http2Settings(is_client=False, stream_window=1000, connection_window=65_535))
    peer.open()
    peer.core.reset(1, ErrorCode.CANCEL)
    peer.heard()

    assert peer.say(make.data(1, bytes(16_384))) == []
    [credit] = peer.heard()
    assert (credit.kind, credit.stream_id, credit.payload) == (WINDOW_UPDATE, 0, b"\0\0\x40\0")


@pytest.mark.parametrize("how", ["reset by us", "forgotten"])
def test_late_headers_cost_their_stream_only(how: str) -> None:
    peer = closed_by(how)

    assert peer.headers(1, TRAILERS, flags=5) == []
    assert peer.heard() == [rst(1, ErrorCode.STREAM_CLOSED)]
    peer.open(101)


@pytest.mark.parametrize("how", ["ended", "lingering", "reset by the peer"])
def test_headers_behind_the_peers_own_end_cost_the_connection(how: str) -> None:
    peer = closed_by(how)

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.headers(1, TRAILERS, flags=5)
    assert caught.value.code == ErrorCode.STREAM_CLOSED


def test_stream_ids_increase() -> None:
    peer = closed_by("skipped")

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.headers(1, CONNECT)
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_late_headers_are_ignored_by_the_client() -> None:
    client, server = joined()
    client.open_stream("h:1", [])
    feed(server, client.outgoing())
    client.reset(1, ErrorCode.CANCEL)
    client.outgoing()
    server.accept(1, [(b"baggage", b"x")])

    assert feed(client, server.outgoing()) == []


@pytest.mark.parametrize(
    "data",
    [
        make.data(5, b"x"),
        make.data(0, b"x"),
        make.window_update(9, 1),
        make.reset(9),
        make.reset(0),
        make.reset(2),
    ],
    ids=["DATA", "DATA on 0", "WINDOW_UPDATE", "RST_STREAM", "RST_STREAM on 0", "RST_STREAM of a server's"],
)
def test_an_idle_stream_takes_no_frame_but_headers(data: bytes) -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(data)
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("stream_id", [0, 2])
def test_no_client_opens_streams_of_even_ids(stream_id: int) -> None:
    with pytest.raises(PeerBrokeProtocol) as caught:
        Peer().headers(stream_id, CONNECT)
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_a_server_opens_no_streams() -> None:
    client, _ = joined()

    with pytest.raises(PeerBrokeProtocol) as caught:
        feed(client, make.raw(1, 4, 1, b"\x88"))
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_headers_after_end_stream_are_reset() -> None:
    peer = Peer()
    peer.open()
    peer.say(make.data(1, ends=True))

    assert peer.headers(1, TRAILERS, flags=5) == [StreamFailed(1, ErrorCode.STREAM_CLOSED)]
    assert peer.heard() == [rst(1, ErrorCode.STREAM_CLOSED)]


def test_data_after_end_stream_ends_the_connection() -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(PeerBrokeProtocol) as caught:
        peer.say(make.data(1, ends=True) + make.data(1))
    assert caught.value.code == ErrorCode.STREAM_CLOSED


def test_a_reset_is_told_once() -> None:
    peer = Peer()
    peer.open()

    assert peer.say(make.reset(1, 8) + make.reset(1, 8)) == [ResetReceived(1, 8)]


def test_trailers_end_a_stream() -> None:
    peer = Peer()
    peer.open()

    assert peer.headers(1, TRAILERS, flags=5) == [StreamEnded(1)]


def test_a_second_headers_without_end_stream_is_reset() -> None:
    peer = Peer()
    peer.open()

    assert peer.headers(1, TRAILERS) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    assert peer.heard() == [rst(1, ErrorCode.PROTOCOL_ERROR)]
    peer.open(3)


def test_malformed_trailers_are_reset() -> None:
    peer = Peer()
    peer.open()

    assert peer.headers(1, [(":status", "200")], flags=5) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
