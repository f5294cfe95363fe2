"""SOCKS5 negotiations, byte for byte."""

import pytest

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.model.address import HostPort, SocketAddress
from ztunnel_trio.wire.socks5 import ConnectRequested, Event, Negotiation, NegotiationFailed, ReplyCode

GREETING = b"\x05\x01\x00"
ACCEPTED = b"\x05\x00"
SUCCESS = bytes.fromhex("05 00 00 01 00000000 0000")
V4_REQUEST = bytes.fromhex("05 01 00 01 7f000001 0050")


def failure(code: int) -> bytes:
    return bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))


def talk(negotiation: Negotiation, data: bytes) -> tuple[list[Event], bytes, bytes]:
    """Feed as a socket would, never more than wanted; events, bytes sent, bytes left in the socket."""
    events: list[Event] = []
    sent = b""
    while data and negotiation.wanted:
        chunk, data = data[: negotiation.wanted], data[negotiation.wanted :]
        event = negotiation.receive(chunk)
        sent += negotiation.outgoing()
        if event is not None:
            events.append(event)
    return events, sent, data


@pytest.mark.parametrize(
    ("request_bytes", "target"),
    [
        (V4_REQUEST, SocketAddress.parse("127.0.0.1:80")),
        (b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb", SocketAddress.parse("[::1]:443")),
        (
            b"\x05\x01\xff\x04" + bytes(10) + b"\xff\xff\x0a\x00\x00\x01\x00\x50",
            SocketAddress.parse("10.0.0.1:80"),  # IPv4-mapped, and the reserved byte is not looked at
        ),
        (b"\x05\x01\x00\x03\x0bexample.com\x00\x50", HostPort("example.com", 80)),
        (b"\x05\x01\x00\x03\x00\x00\x50", HostPort("", 80)),
    ],
)
def test_a_connection_is_requested(request_bytes: bytes, target: SocketAddress | HostPort) -> None:
    negotiation = Negotiation(has_names=True)

    events, sent, left = talk(negotiation, GREETING + request_bytes + b"early data")

    assert events == [ConnectRequested(target)]
    assert sent == ACCEPTED
    assert left == b"early data"


def test_success_is_told_before_anything_is_dialled() -> None:
    negotiation = Negotiation(has_names=False)
    talk(negotiation, GREETING + V4_REQUEST)

    negotiation.accept()

    assert negotiation.outgoing() == SUCCESS
    assert negotiation.outgoing() == b""
    assert negotiation.wanted == 0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x04\x01", "unsupported version 4"),
        (b"\x05\x00", "methods cannot be zero"),
        (b"\x05\x02\x01\x02", "only unauthenticated is supported"),
        (GREETING + b"\x04\x01\x00\x01", "unsupported version 4"),
        (GREETING + b"\x05\x02\x00\x01", "unsupported command 2"),
        (GREETING + b"\x05\x03\x00\x01", "unsupported command 3"),
        (GREETING + b"\x05\x01\x00\x02", "unsupported address type 2"),
        (GREETING + b"\x05\x01\x00\x03\x01\xff\x00\x50", "invalid domain, not utf-8"),
        (
            GREETING + b"\x05\x01\x00\x03\x01a\x00\x50",
            "unsupported hostname lookup, requires DNS enabled",
        ),
    ],
)
def test_every_problem_of_the_protocol_is_answered_with_7(data: bytes, text: str) -> None:
    negotiation = Negotiation(has_names=False)

    events, sent, left = talk(negotiation, data)

    assert events == [NegotiationFailed(text)]
    assert sent.removeprefix(ACCEPTED) == failure(7)
    assert left == b""
    assert negotiation.wanted == 0


def test_no_authentication_is_found_among_many_methods() -> None:
    negotiation = Negotiation(has_names=False)

    assert negotiation.receive(b"\x05\xff") is None
    assert negotiation.receive(bytes(range(1, 255)) + b"\x00") is None
    assert negotiation.outgoing() == ACCEPTED


def test_a_client_that_leaves_in_the_middle_is_answered_with_1() -> None:
    negotiation = Negotiation(has_names=False)
    negotiation.receive(b"\x05")

    assert negotiation.end() == NegotiationFailed("early eof")
    assert negotiation.outgoing() == failure(1)


def test_a_name_that_cannot_be_resolved_is_answered_with_4() -> None:
    negotiation = Negotiation(has_names=True)
    talk(negotiation, GREETING + b"\x05\x01\x00\x03\x01a\x00\x50")

    failed = negotiation.refuse(ReplyCode.HOST_UNREACHABLE, "dns response had no valid IP addresses")

    assert failed == NegotiationFailed("dns response had no valid IP addresses")
    assert negotiation.outgoing() == failure(4)


def test_bytes_nobody_wanted_are_our_own_fault() -> None:
    negotiation = Negotiation(has_names=True)

    with pytest.raises(WeBrokeProtocol):
        negotiation.receive(b"\x05\x01\x00")
    with pytest.raises(WeBrokeProtocol):
        negotiation.accept()
    talk(negotiation, GREETING + V4_REQUEST)
    negotiation.accept()
    with pytest.raises(WeBrokeProtocol):
        negotiation.refuse(ReplyCode.GENERAL_FAILURE, "too late")


def test_nothing_received_changes_nothing() -> None:
    negotiation = Negotiation(has_names=True)

    assert negotiation.receive(b"") is None
    assert negotiation.wanted == 2
