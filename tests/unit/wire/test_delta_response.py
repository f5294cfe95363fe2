"""Cutting a response: what is opened, what is refused."""

import pytest

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.pb import xds_pb2
from ztunnel_trio.wire.delta_response import Resource, ResponseSplitter, read_resources
from ztunnel_trio.wire.rejection import RejectedResource


def group_of(*resources: bytes) -> bytes:
    """Encoded resources as fields of a response."""
    return b"".join(b"\x12" + bytes((len(one),)) + one for one in resources)


def test_resources_are_opened_but_not_their_payloads() -> None:
    without = xds_pb2.Resource(name="a", version="v", aliases=["b"])
    undecodable = xds_pb2.Resource(name="c", resource={"value": b"\xff"})

    read = read_resources(group_of(without.SerializeToString(), undecodable.SerializeToString()))

    assert read == [Resource("a", "v", ("b",), None), Resource("c", "", (), b"\xff")]


def test_an_envelope_that_cannot_be_read_rejects_itself_only() -> None:
    good = xds_pb2.Resource(name="a", resource={"value": b"x"}).SerializeToString()

    first, bad, last = read_resources(group_of(good, b"\xff\xff", good))

    assert first == last == Resource("a", "", (), b"x")
    assert isinstance(bad, RejectedResource)
    assert (bad.resource, bad.is_undecodable) == ("", True)
    assert bad.reason.startswith("decode: ")


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
