"""The error families keep what their handlers need."""

from ztunnel_trio.errors import PeerBrokeProtocol


def test_a_broken_protocol_carries_the_wires_code() -> None:
    assert PeerBrokeProtocol("bad frame", 1).code == 1
    assert PeerBrokeProtocol("bad text").code is None
