"""Connections are values: equal ones are one entry in a table."""

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.connection import Direction, InboundConnection
from ztunnel_trio.model.identity import SpiffeId


def test_connections_with_equal_facts_are_equal() -> None:
    def connection(account: str) -> InboundConnection:
        return InboundConnection(
            source=SocketAddress.parse("10.0.0.1:1"),
            destination=SocketAddress.parse("10.0.0.2:2"),
            identity=SpiffeId("td", "ns", account),
        )

    assert len({connection("a"), connection("a"), connection("b")}) == 2


def test_directions_are_the_words_of_the_access_log() -> None:
    assert [direction.value for direction in Direction] == ["inbound", "outbound"]
