"""What is known of a connection when its record is opened."""

from dataclasses import dataclass

from ztunnel_trio.model.address import HboneTarget, SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import Workload


@dataclass(slots=True, kw_only=True)
class ConnectionFacts:
    """What the access line and the labels are made of.

    `source_identity` is proven by TLS. `destination_identity` None means the destination record's.
    `destination_baggage` is what the inner peer of a double HBONE tunnel told of itself; it replaces
    the destination's labels altogether. `mutual_tls`: the connection is HBONE.
    """

    direction: Direction
    source: SocketAddress
    destination: SocketAddress
    hbone_target: HboneTarget | None = None
    source_workload: Workload | None = None
    source_identity: SpiffeId | None = None
    source_baggage: Baggage | None = None
    destination_workload: Workload | None = None
    destination_identity: SpiffeId | None = None
    destination_baggage: Baggage | None = None
    destination_service: Service | None = None
    mutual_tls: bool = False
