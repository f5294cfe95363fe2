"""A refusal leaves the pure world whole."""

from ztunnel_trio.errors import ZtunnelError
from ztunnel_trio.model.refusal import Reason, Refusal, Refused


def test_a_refusal_leaves_the_pure_world_whole() -> None:
    refusal = Refusal(Reason.IP_MISMATCH, "10.0.0.1 != 10.0.0.2")

    error = Refused(refusal)

    assert isinstance(error, ZtunnelError)
    assert error.refusal is refusal
    assert str(error) == "ip_mismatch: 10.0.0.1 != 10.0.0.2"


def test_every_reason_has_its_own_word() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason)
