"""Port 15001: captured traffic leaving the pod.

A connection is accepted before anything is known of its destination; whatever goes wrong later closes it,
and no byte is ever written to the client in place of the destination.
"""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import trio

from ztunnel_trio.decide.retry import Tries
from ztunnel_trio.decide.route import OutboundRequest, Route
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.refusal import Refused
from ztunnel_trio.model.workload import OutboundProtocol
from ztunnel_trio.net.listener import original_destination
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.relay import SocketEnd, pair_of
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.access.record import ConnectionRecord
from ztunnel_trio.observe.log import Bare, get_logger, span
from ztunnel_trio.observe.words import error_text
from ztunnel_trio.proxy.node import NodeParts
from ztunnel_trio.proxy.reach import Attempt, Reach, Reached
from ztunnel_trio.proxy.registry import OutboundEntry, Registry
from ztunnel_trio.proxy.routing import Routing
from ztunnel_trio.wire.header_values import TraceParent

log = get_logger("proxy::outbound")


@dataclass(frozen=True, slots=True)
class Call:
    """One connection of the application: who opens it to where."""

    client: SocketAddress
    target: SocketAddress
    trace: TraceParent


@dataclass(slots=True, eq=False)
class Outbound:
    """Carries what one workload sends."""

    node: NodeParts
    registry: Registry
    routing: Routing
    reach: Reach

    async def serve(self, sock: socket.socket, client: SocketAddress) -> None:
        """Serve one captured connection."""
        trace, target = self.node.new_trace(), original_destination(sock)
        with (
            span("outbound", id=Bare(trace.trace_id)),
            self.node.metrics.sockets_open("source"),
            self.node.access.connection(client, target, Direction.OUTBOUND) as record,
        ):
            entry, pair = await self.establish(sock, Call(client, target, trace), record)
            del trace, target  # an idle connection lives long
            await self.carry(entry, pair, record)

    async def carry(self, entry: OutboundEntry, pair: Pair, record: ConnectionRecord) -> None:
        """Relay until it is over."""
        self.registry.outbound.add(entry)
        try:
            record.finish(await pair.run())
        finally:
            self.registry.outbound.discard(entry)

    async def establish(
        self, sock: socket.socket, call: Call, record: ConnectionRecord
    ) -> tuple[OutboundEntry, Pair]:
        """Reach where the client meant to go, trying what else may help; the socket is the caller's to close.

        Raises:
            Refused: what the last try failed with; the record knows of it.
        """
        routing, settings = self.routing, self.node.settings
        request = await routing.request(sock, call.client, call.target)
        found = await routing.first(request)
        now = trio.current_time()
        tries = Tries(now + settings.connect_seconds, settings.other_endpoints)
        while True:
            route = found.route
            facts = facts_of(route, request, call.client)
            record.about(facts)
            seconds = tries.share(routing.others(found, tries), now)
            attempt = Attempt(route, request, call.client, call.trace, seconds, now)
            try:
                reached = await self.way_of(route)(attempt)
            except Refused as error:
                other = await routing.next(found, request, error.refusal, tries)
                if other is None:
                    raise
                found, tries = other
                text, there = error_text(error.refusal), found.route.destination
                log.info("connecting to %s failed (%s), trying %s", route.destination, text, there)
                self.node.metrics.connect_retry("source")
                now = trio.current_time()
                continue
            if route.workload is not None:
                routing.failures.forgive(route.workload.uid)
            record.open(with_inner_peer(facts, reached))
            entry = OutboundEntry(call.client, request.target, route.destination, route.protocol)
            return entry, pair_of(self.node.engine, SocketEnd(sock), reached.end, record.traffic)

    def way_of(self, route: Route) -> Callable[[Attempt], Awaitable[Reached]]:
        """How a route's destination is reached."""
        match route.protocol:
            case OutboundProtocol.TCP:
                return self.reach.plain
            case OutboundProtocol.HBONE:
                return self.reach.hbone
            case OutboundProtocol.DOUBLE_HBONE:
                return self.reach.double_hbone


def facts_of(route: Route, request: OutboundRequest, client: SocketAddress) -> ConnectionFacts:
    """What the access log and the metrics tell of a connection by this route."""
    is_hbone = route.protocol is not OutboundProtocol.TCP
    return ConnectionFacts(
        direction=Direction.OUTBOUND,
        source=client,
        destination=route.destination,
        hbone_target=route.authority,
        source_workload=request.source,
        source_identity=request.source.identity if is_hbone else None,
        destination_workload=route.workload,
        destination_identity=route.workload.identity if is_hbone and route.workload is not None else None,
        destination_service=route.service,
        mutual_tls=is_hbone,
    )


def with_inner_peer(facts: ConnectionFacts, reached: Reached) -> ConnectionFacts:
    """The facts, with what the peer inside a double tunnel told of itself."""
    if reached.baggage is None:
        return facts
    identity = reached.identity or facts.destination_identity
    return replace(facts, destination_baggage=reached.baggage, destination_identity=identity)
