"""The error families keep what their handlers need."""

from ztunnel_trio.errors import PeerBrokeProtocol, Reason, Refusal, Refused, ZtunnelError


def test_a_broken_protocol_carries_the_wires_code() -> None:
    assert PeerBrokeProtocol("bad frame", 1).code == 1
    assert PeerBrokeProtocol("bad text").code is None


def test_a_refusal_leaves_the_pure_world_whole() -> None:
    refusal = Refusal(Reason.IP_MISMATCH, "10.0.0.1 != 10.0.0.2")

    error = Refused(refusal)

    assert isinstance(error, ZtunnelError)
    assert error.refusal is refusal
    assert str(error) == "ip_mismatch: 10.0.0.1 != 10.0.0.2"


def test_every_reason_has_its_own_word() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason)
