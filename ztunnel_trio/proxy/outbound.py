"""Port 15001: captured traffic leaving the pod.

A connection is accepted before anything is known of its destination; whatever goes wrong later closes it,
and no byte is ever written to the client in place of the destination.
"""

import random
import socket
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from ztunnel_trio.decide.route import (
    HostAnswer,
    Known,
    NeedAddress,
    NeedHost,
    OutboundRequest,
    Route,
    route,
)
from ztunnel_trio.errors import Reason, Refusal, Refused
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import OutboundProtocol, Workload, WorkloadInfo
from ztunnel_trio.net.listener import original_destination
from ztunnel_trio.net.relay import Endpoint, SocketEnd, relay
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls import TlsPeer
from ztunnel_trio.observe.access_log import ConnectionFacts, describe, io_text, source_labels
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.dialler import REVOKED, Dialler
from ztunnel_trio.proxy.node import Node
from ztunnel_trio.proxy.pool import Pool, PoolKey
from ztunnel_trio.proxy.registry import OutboundEntry, Registry
from ztunnel_trio.proxy.serving import contained, counted
from ztunnel_trio.proxy.tunnel import ClientTunnel
from ztunnel_trio.proxy.tunnel_stream import H2Failed, TunnelStream
from ztunnel_trio.wire.header_values import (
    BAGGAGE,
    FORWARDED,
    TRACE_BYTES,
    TRACEPARENT,
    X_FORWARDED_NETWORK,
    TraceParent,
    encode_baggage,
    encode_forwarded,
    parse_baggage,
)

log = get_logger("proxy::outbound")

OK: Final = 200  # the one answer that is yes
MAX_QUESTIONS: Final = 16  # a decision asks for a service, its waypoint, a gateway and their hosts at most

# What another endpoint may do better: not being reachable, and a proxy that could not reach its application.
TRY_ANOTHER: Final = frozenset(
    {
        Reason.IO,
        Reason.HBONE_CONNECT_TIMEOUT,
        Reason.H2,
        Reason.H2_HANDSHAKE,
        Reason.NO_RESOLVED_ADDRESSES,
        Reason.NO_USABLE_RECORDS,
    }
)


@dataclass(frozen=True, slots=True)
class Reached:
    """The end of a connection at its destination; what the inner peer of a double tunnel told of itself."""

    end: Endpoint
    baggage: Baggage | None = None
    identity: SpiffeId | None = None


@dataclass(slots=True, eq=False)
class Attempt:
    """The route being tried."""

    way: Route


@dataclass(slots=True, eq=False)
class Outbound:
    """Carries what one workload sends."""

    node: Node
    info: WorkloadInfo
    sockets: SocketFactory
    registry: Registry
    pool: Pool
    dialler: Dialler
    _baggage_of: Workload | None = None
    _baggage: bytes = b""

    async def serve(self, sock: socket.socket, peer: SocketAddress) -> None:
        """Serve one captured connection."""
        with counted(self.node.metrics.sockets_open("source")):
            await self.carry(sock, peer, original_destination(sock))

    async def carry(self, sock: socket.socket, client: SocketAddress, target: SocketAddress) -> None:
        """Carry a connection to where its client meant it to go. The socket is the caller's to close."""
        try:
            source = await self.node.live.local_workload(
                self.info, seconds=self.node.settings.local_workload_seconds
            )
            if source is None:
                raise Refused(Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, str(self.info)))
            settings = self.node.settings
            request = OutboundRequest(source, client.ip, target, settings.network, settings.hbone_port)
            found = await self.find_route(request)
        except Refused as error:
            self.node.access.refuse(
                source=client, destination=target, direction=Direction.OUTBOUND, refusal=error.refusal
            )
            return
        await self.carry_by(found, request, sock, client)

    async def find_route(self, request: OutboundRequest, exclude: frozenset[str] = frozenset()) -> Route:
        """Decide where the connection goes, getting what the decision asks for.

        Raises:
            Refused: there is nowhere to go.
        """
        node, known = self.node, Known()
        seed = node.rng.getrandbits(64)
        for _ in range(MAX_QUESTIONS):
            match route(
                request,
                node.live.mesh,
                known,
                random.Random(seed),
                on_demand=node.settings.on_demand,
                illegal_ports=node.settings.illegal_ports,
                exclude=exclude,
            ):
                case Route() as found:
                    for note in found.notes:
                        log.warning("%s", note)
                    return found
                case Refusal() as refusal:
                    raise Refused(refusal)
                case NeedAddress(name=name):
                    await node.demand(name)
                    known = known.with_asked(name)
                case NeedHost(workload=workload):
                    known = known.with_host(workload.uid, await self.resolve(request.source, workload))
        raise Refused(Refusal(Reason.NO_HEALTHY_UPSTREAM, str(request.target)))

    async def resolve(self, source: Workload, workload: Workload) -> HostAnswer:
        """The addresses of a workload known by its hostname only."""
        self.node.metrics.on_demand_dns(source_labels(source, source.identity, None), workload.hostname)
        return await self.node.resolve(workload.hostname)

    async def carry_by(
        self, first: Route, request: OutboundRequest, sock: socket.socket, client: SocketAddress
    ) -> None:
        """Reach the destination by this route, or by another endpoint of its service, and relay."""
        access, attempt = self.node.access, Attempt(first)
        try:
            reached = await self.reach_some(attempt, request, client)
        except Refused as error:
            access.open(facts_of(attempt.way, request, client)).finish(error.refusal)
            return
        except trio.Cancelled:
            access.open(facts_of(attempt.way, request, client)).finish(Refusal(Reason.DRAIN))
            raise
        way = attempt.way
        record = access.open(facts_of(way, request, client, reached))
        entry = OutboundEntry(client, request.target, way.destination, way.protocol)
        try:
            with self.registry.list_outbound(entry):
                trouble = await relay(self.node.engine, SocketEnd(sock), reached.end, record.traffic)
            record.finish(outcome_of(reached.end, trouble))
        finally:
            record.finish(Refusal(Reason.DRAIN))  # only a cancellation finds it unfinished

    async def reach_some(self, attempt: Attempt, request: OutboundRequest, client: SocketAddress) -> Reached:
        """Reach the destination, trying other endpoints of its service while that may help.

        Raises:
            Refused: what the last route tried, now `attempt.way`, failed with.
        """
        deadline = trio.current_time() + self.node.settings.connect_seconds
        tried: frozenset[str] = frozenset()
        while True:
            way = attempt.way
            try:
                return await self.reach(way, request, client)
            except Refused as error:
                if way.workload is not None:
                    tried |= {way.workload.uid}
                other = await self.another(way, request, error.refusal, tried, deadline)
                if other is None:
                    raise
                log.info(
                    "connecting to %s failed (%s), trying %s",
                    way.destination,
                    describe(error.refusal),
                    other.destination,
                )
                self.node.metrics.connect_retry("source")
                attempt.way = other

    async def another(
        self,
        way: Route,
        request: OutboundRequest,
        refusal: Refusal,
        tried: frozenset[str],
        deadline: float,
    ) -> Route | None:
        """Another endpoint to try after a failure, while time and the number of tries allow."""
        if (
            way.service is None
            or not may_another_help(refusal)
            or len(tried) > self.node.settings.other_endpoints
            or trio.current_time() >= deadline
        ):
            return None
        try:
            return await self.find_route(request, tried)
        except Refused:
            return None

    async def reach(self, way: Route, request: OutboundRequest, client: SocketAddress) -> Reached:
        """Reach the destination of a route.

        Raises:
            Refused: it cannot be reached; nothing of the application was sent.
        """
        match way.protocol:
            case OutboundProtocol.TCP:
                return Reached(SocketEnd(await self.dial_plain(way.destination)))
            case OutboundProtocol.HBONE:
                return Reached(await self.connect(way, request, client))
            case OutboundProtocol.DOUBLE_HBONE:
                return await self.connect_twice(way, request, client)

    async def dial_plain(self, destination: SocketAddress) -> socket.socket:
        """Connect to a destination that takes plain text."""
        try:
            with trio.fail_after(self.node.settings.connect_seconds):
                return await self.sockets.connect(destination)
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.IO, io_text(error))) from error

    async def connect(self, way: Route, request: OutboundRequest, client: SocketAddress) -> TunnelStream:
        """CONNECT through a tunnel to the route's destination; the answer was 200."""
        assert way.authority is not None
        key = PoolKey(request.source.identity, way.expected, way.destination, client.ip)
        headers = self.headers(way, request, client)
        try:
            with trio.fail_after(self.node.settings.answer_seconds):
                stream = await self.pool.open(key, way.authority, headers)
        except H2Failed as error:
            raise Refused(Refusal(Reason.H2, str(error))) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.H2, "no answer to the CONNECT in time")) from error
        check_answer(stream)
        return stream

    async def connect_twice(self, way: Route, request: OutboundRequest, client: SocketAddress) -> Reached:
        """CONNECT to another network's gateway, and through it to whatever ends the inner tunnel there."""
        assert way.authority is not None
        certificate = await self.dialler.certificate(request.source.identity)
        outer = await self.connect(way, request, client)
        inner, peer = await self.dialler.inner_tunnel(outer, certificate, way.inner_expected)
        self.pool.nursery.start_soon(contained, "inner tunnel", partial(self.run_inner, inner, peer))
        headers = [*self.headers(way, request, client), (X_FORWARDED_NETWORK, self.network)]
        try:
            with trio.fail_after(self.node.settings.answer_seconds):
                stream = await inner.open(way.authority, headers)
        except H2Failed as error:
            raise Refused(Refusal(Reason.H2, str(error))) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.H2, "no answer to the CONNECT in time")) from error
        finally:
            inner.release_when_idle()
        check_answer(stream)
        lines = [value.encode("latin-1") for value in stream.headers.get("baggage", ())]
        baggage = parse_baggage(lines)
        return Reached(stream, baggage or Baggage(), peer.identities[0] if peer.identities else None)

    async def run_inner(self, inner: ClientTunnel, peer: TlsPeer) -> None:
        """The life of an inner tunnel, which serves one connection."""
        with self.dialler.watch(inner, peer):
            await inner.run()

    def headers(
        self, way: Route, request: OutboundRequest, client: SocketAddress
    ) -> list[tuple[bytes, bytes]]:
        """The headers of a CONNECT, in the order peers expect."""
        host = way.service.hostname if way.service is not None else None
        trace = TraceParent.generate(self.node.rng.randbytes(TRACE_BYTES))
        return [
            (BAGGAGE, self.baggage(request.source)),
            (FORWARDED, encode_forwarded(client, host)),
            (TRACEPARENT, str(trace).encode()),
        ]

    def baggage(self, source: Workload) -> bytes:
        """The baggage of our workload, encoded once for each version of its record."""
        if source is not self._baggage_of:
            self._baggage_of, self._baggage = source, encode_baggage(source)
        return self._baggage

    @property
    def network(self) -> bytes:
        return self.node.settings.network.encode()


def outcome_of(end: Endpoint, trouble: str | None) -> Refusal | None:
    """How a relay ended: well, with the relay's trouble, or because the peer's certificate was revoked."""
    if isinstance(end, TunnelStream) and end.tunnel.failure_text == REVOKED:
        return Refusal(Reason.CERTIFICATE_REVOKED)
    return None if trouble is None else Refusal(Reason.RELAY, trouble)


def may_another_help(refusal: Refusal) -> bool:
    """Whether another endpoint may do better than the one that failed so."""
    if refusal.reason is Reason.HTTP_STATUS:
        return refusal.detail == "503"  # the peer's proxy could not reach its application
    return refusal.reason in TRY_ANOTHER


def check_answer(stream: TunnelStream) -> None:
    """Let only a 200 pass; the stream of any other answer is given up."""
    if stream.status != OK:
        stream.close()
        raise Refused(Refusal(Reason.HTTP_STATUS, str(stream.status)))


def facts_of(
    way: Route, request: OutboundRequest, client: SocketAddress, reached: Reached | None = None
) -> ConnectionFacts:
    """What the access log and the metrics tell of a connection by this route."""
    is_hbone = way.protocol is not OutboundProtocol.TCP
    destination_identity = way.workload.identity if is_hbone and way.workload is not None else None
    if reached is not None and reached.identity is not None:
        destination_identity = reached.identity
    return ConnectionFacts(
        direction=Direction.OUTBOUND,
        source=client,
        destination=way.destination,
        hbone_target=way.authority,
        source_workload=request.source,
        source_identity=request.source.identity if is_hbone else None,
        source_baggage=None,
        destination_workload=way.workload,
        destination_identity=destination_identity,
        destination_baggage=reached.baggage if reached is not None else None,
        destination_service=way.service,
        mutual_tls=is_hbone,
    )
