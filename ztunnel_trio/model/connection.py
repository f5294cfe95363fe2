"""What is known of one connection when it is judged."""

from dataclasses import dataclass
from enum import Enum

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId


class Direction(Enum):
    """Seen from the local workload; the values are the words of the access log."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundConnection:
    """The facts an authorization decision may use.

    `source` is the TCP peer, `destination` the workload's address with the port finally dialled,
    `identity` what the peer's certificate proved, None for plain text.
    """

    source: SocketAddress
    destination: SocketAddress
    identity: SpiffeId | None
    network: str = ""
