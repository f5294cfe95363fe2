"""Cutting a response: what is opened, what is refused."""

import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.wire.delta_response import Resource, ResponseSplitter, parse_resource


def test_resources_are_opened_but_not_their_payloads() -> None:
    message = xds_pb2.Resource(name="a", version="v", aliases=["b"])
    assert parse_resource(message.SerializeToString()) == Resource("a", "v", ("b",), None)
    message.resource.value = b"\xff"
    assert parse_resource(message.SerializeToString()).value == b"\xff"
    with pytest.raises(PeerBrokeProtocol, match="decode: "):
        parse_resource(b"\xff\xff")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x12\x05ab", "past its end"),
        (b"\x12\xff\xff\xff\xff\x0f", "past its end"),
        (b"\x12" + b"\xff" * 10 + b"\x01", "varint is too long"),
        (b"\x10\x01", "field 2 has wire type 0"),
        (b"\x00\x01", "field 0"),
        (b"\x02\x01a", "field 0"),
        (b"\x3b", "wire type 3"),
        (b"\x22\x01\xff", "field 4 is not UTF-8"),
        (b"\x12", "ends within a field"),
        (b"\x39\x00", "ends within a field"),
    ],
)
def test_a_broken_response_is_refused(data: bytes, text: str) -> None:
    def split() -> None:
        splitter = ResponseSplitter(len(data))
        splitter.feed(data)
        splitter.finish()

    with pytest.raises(PeerBrokeProtocol, match=text):
        split()


def test_a_response_longer_than_announced_is_refused() -> None:
    splitter = ResponseSplitter(1)
    with pytest.raises(PeerBrokeProtocol):
        splitter.feed(b"\x12\x00")


def test_an_empty_message_is_an_empty_response() -> None:
    assert ResponseSplitter(0).finish().type_url == ""
