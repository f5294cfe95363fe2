"""Answers at the client."""

import pytest

from tests.fakes.http2 import FrameFactory, TextField, feed, joined, read_frames, rst
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection
from ztunnel_trio.wire.http2.events import Event, StreamEnded, StreamFailed, TunnelAnswered


def asked() -> tuple[Http2Connection, FrameFactory]:
    """A client that waits for an answer on stream 1, and what its peer writes with."""
    client, _ = joined()
    client.open_stream("h:1", [])
    client.outgoing()
    return client, FrameFactory()


def answer(
    client: Http2Connection, make: FrameFactory, fields: list[TextField], flags: int = 4
) -> list[Event]:
    return feed(client, make.headers(1, fields, flags))


def test_informational_answers_are_passed_over() -> None:
    client, make = asked()

    assert answer(client, make, [(":status", "103")]) == []
    assert answer(client, make, [(":status", "503")], 5) == [TunnelAnswered(1, 503, {}), StreamEnded(1)]


def test_an_informational_answer_cannot_end_a_stream() -> None:
    client, make = asked()

    assert answer(client, make, [(":status", "100")], 5) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]


@pytest.mark.parametrize(
    "fields",
    [
        [(":status", "ok")],
        [(":status", "200"), ("content-length", "many")],
        [(":status", "200"), ("content-length", "1"), ("content-length", "2")],
        [(":status", "200"), ("content-length", "9" * 30)],
        [(":status", "200"), ("content-length", "\u00b2")],  # a digit to `str.isdigit`, a number to nobody
        [(":status", "200"), ("a", "o" * 20_000)],  # over our list, 12 500 octets
    ],
)
def test_an_answer_nobody_can_read_costs_its_stream(fields: list[TextField]) -> None:
    client, make = asked()

    assert answer(client, make, fields) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]
    assert list(read_frames(client.outgoing())) == [rst(1, ErrorCode.PROTOCOL_ERROR)]
    assert client.open_stream("h:1", []) == 3


def test_trailers_over_our_list_cost_their_stream() -> None:
    client, make = asked()
    answer(client, make, [(":status", "200")])

    assert answer(client, make, [("a", "o" * 20_000)], 5) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]


def test_the_length_of_an_answer_is_held_to() -> None:
    client, make = asked()
    answer(client, make, [(":status", "503"), ("content-length", "2")])

    assert feed(client, make.data(1, b"abc")) == [StreamFailed(1, ErrorCode.PROTOCOL_ERROR)]


def test_an_answer_that_ends_may_name_a_length() -> None:
    client, make = asked()

    assert answer(client, make, [(":status", "503"), ("content-length", "2")], 5) == [
        TunnelAnswered(1, 503, {"content-length": ["2"]}),
        StreamEnded(1),
    ]
