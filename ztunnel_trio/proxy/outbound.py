"""Port 15001: captured traffic leaving the pod.

A connection is accepted before anything is known of its destination; whatever goes wrong later closes it,
and no byte is ever written to the client in place of the destination.
"""

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

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
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import OutboundProtocol, Workload, WorkloadInfo
from ztunnel_trio.net.failures import DEADLINE_TEXT, io_text
from ztunnel_trio.net.listener import local_address, original_destination
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.relay import Endpoint, SocketEnd, pair_of
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls import TlsPeer
from ztunnel_trio.observe.access_log import ConnectionFacts, ConnectionRecord, describe, source_labels
from ztunnel_trio.observe.log import Bare, get_logger, span
from ztunnel_trio.proxy.client_tunnel import ClientTunnel
from ztunnel_trio.proxy.dialler import Dialler, is_revoked
from ztunnel_trio.proxy.node import Node
from ztunnel_trio.proxy.pool import Pool, PoolKey
from ztunnel_trio.proxy.registry import OutboundEntry, Registry
from ztunnel_trio.proxy.serving import contained, ended_by
from ztunnel_trio.proxy.tunnel_stream import Carrier, H2Failed, TunnelStream
from ztunnel_trio.wire.header_values import (
    BAGGAGE,
    FORWARDED,
    TRACEPARENT,
    X_FORWARDED_NETWORK,
    TraceParent,
    encode_baggage,
    encode_forwarded,
    parse_baggage,
)

log = get_logger("proxy::outbound")

T = TypeVar("T")

OK: Final = 200  # the one answer that is yes
NO_ANSWER: Final = "no answer to the CONNECT in time"
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
    """The end of a connection at its destination, and the tunnels that lead there, if any.

    `baggage` and `identity` are what the inner peer of a double tunnel told of itself.
    """

    end: Endpoint
    tunnels: tuple[Carrier, ...] = ()
    baggage: Baggage | None = None
    identity: SpiffeId | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One connection of the application: who opens it to where; `began` is on the access log's clock."""

    client: SocketAddress
    target: SocketAddress
    trace: TraceParent
    began: float


@dataclass(slots=True, eq=False)
class Attempt:
    """The route being tried."""

    way: Route


@dataclass(slots=True, eq=False)
class Carried:
    """An established connection: what an idle one keeps, so nothing that only its beginning needs."""

    registry: Registry
    dialler: Dialler
    record: ConnectionRecord
    entry: OutboundEntry
    tunnels: tuple[Carrier, ...]
    pair: Pair

    async def run(self) -> None:
        """Relay until it is over; leaves the access line."""
        self.registry.outbound.add(self.entry)
        self.dialler.trust(self.tunnels, self.pair)
        try:
            trouble = await self.pair.run()
        except BaseException as error:
            self.record.finish(ended_by(error))
            raise
        finally:
            self.dialler.distrust(self.tunnels, self.pair)
            self.registry.outbound.discard(self.entry)
        self.record.finish(outcome_of(self.tunnels, trouble))


@dataclass(slots=True, eq=False)
class Patience:
    """Shares the time for connecting among the endpoints that may be tried. `deadline` is Trio's."""

    deadline: float
    tries_left: int

    def share(self, others: int, now: float) -> float:
        """The seconds the present endpoint gets, with so many others there."""
        return max(self.deadline - now, 0.0) / (1 + min(self.tries_left, others))

    def one_more(self) -> bool:
        """Whether there are time and tries left; takes one."""
        if self.tries_left <= 0 or trio.current_time() >= self.deadline:
            return False
        self.tries_left -= 1
        return True


class SeededChance:
    """Chance for one decision, the same each time that asks.

    Seeding takes 5 µs, so it waits for the first draw; most decisions have one endpoint to choose from.
    """

    __slots__ = ("_rng", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng: random.Random | None = None

    @property
    def rng(self) -> random.Random:
        """The generator."""
        if self._rng is None:
            self._rng = random.Random(self._seed)
        return self._rng

    def randrange(self, stop: int) -> int:
        """See `decide.known.Chance`."""
        return self.rng.randrange(stop)

    def choice(self, options: Sequence[T]) -> T:
        """See `decide.known.Chance`."""
        return self.rng.choice(options)

    def choices(self, options: Sequence[T], weights: Sequence[int]) -> list[T]:
        """See `decide.known.Chance`."""
        return self.rng.choices(options, weights)


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
        trace = self.node.new_trace()
        with (
            span("outbound", id=Bare(trace.trace_id)),
            self.node.metrics.sockets_open("source"),
        ):
            call = Call(peer, original_destination(sock), trace, self.node.access.now())
            carried = await self.establish(sock, call)
            if carried is not None:
                del call, trace  # an idle connection lives long
                await carried.run()

    async def establish(self, sock: socket.socket, call: Call) -> Carried | None:
        """Reach where the client meant to go; the socket is the caller's to close.

        None: it cannot be reached, which the access line has been told.
        """
        try:
            request = await self.request(sock, call)
            attempt = Attempt(await self.find_route(request))
        except Refused as error:
            self.deny(call, error.refusal)
            return None
        except BaseException as error:
            self.deny(call, ended_by(error))
            raise
        try:
            reached = await self.reach_some(attempt, request, call)
        except Refused as error:
            self.give_up(attempt.way, request, call, error.refusal)
            return None
        except BaseException as error:
            self.give_up(attempt.way, request, call, ended_by(error))
            raise
        way = attempt.way
        record = self.node.access.open(facts_of(way, request, call.client, reached), began=call.began)
        return Carried(
            self.registry,
            self.dialler,
            record,
            OutboundEntry(call.client, request.target, way.destination, way.protocol),
            reached.tunnels,
            pair_of(self.node.engine, SocketEnd(sock), reached.end, record.traffic),
        )

    def deny(self, call: Call, refusal: Refusal) -> None:
        """Leave the line of a connection that got no record."""
        self.node.access.refuse(
            source=call.client, destination=call.target, direction=Direction.OUTBOUND, refusal=refusal
        )

    async def request(self, sock: socket.socket, call: Call) -> OutboundRequest:
        """What is to be decided, once our own workload is known.

        Raises:
            Refused: it is not.
        """
        settings, live = self.node.settings, self.node.live
        source = live.mesh.local_workload(self.info)
        if source is None:
            source = await live.local_workload(self.info, seconds=settings.local_workload_seconds)
        if source is None:
            raise Refused(Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, str(self.info)))
        return OutboundRequest(
            source,
            call.client.ip,
            call.target,
            settings.network,
            settings.hbone_port,
            self.is_here(sock, call.target),
        )

    def is_here(self, sock: socket.socket, target: SocketAddress) -> bool:
        """Whether dialling a port that is ours would come back to this pod, for what `sock` asked."""
        return target.port in self.node.settings.illegal_ports and (
            target == local_address(sock) or self.sockets.has_address(target.ip)
        )

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
                SeededChance(seed),
                on_demand=node.settings.on_demand,
                illegal_ports=node.settings.illegal_ports,
                exclude=exclude,
                draws=node.draws,
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

    def give_up(self, way: Route, request: OutboundRequest, call: Call, refusal: Refusal) -> None:
        """Leave the access line of a connection that was never established."""
        record = self.node.access.open(facts_of(way, request, call.client), began=call.began)
        record.finish(refusal)

    async def reach_some(self, attempt: Attempt, request: OutboundRequest, call: Call) -> Reached:
        """Reach the destination, trying other endpoints of its service while that may help.

        Raises:
            Refused: what the last route tried, now `attempt.way`, failed with.
        """
        now = trio.current_time()
        settings = self.node.settings
        patience = Patience(now + settings.connect_seconds, settings.other_endpoints)
        tried: frozenset[str] = frozenset()
        while True:
            way = attempt.way
            seconds = patience.share(self.others(way), now)
            try:
                return await self.reach(way, request, call, seconds, now)
            except Refused as error:
                if way.workload is not None:
                    tried |= {way.workload.uid}
                other = await self.another(way, request, error.refusal, tried, patience)
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
                now = trio.current_time()

    def others(self, way: Route) -> int:
        """How many other endpoints the service of a route has, usable or not."""
        if way.service is None:
            return 0
        return max(len(self.node.live.mesh.endpoints(way.service.key)) - 1, 0)

    async def another(
        self,
        way: Route,
        request: OutboundRequest,
        refusal: Refusal,
        tried: frozenset[str],
        patience: Patience,
    ) -> Route | None:
        """What to try after a failure, while time and the number of tries allow.

        Another endpoint; the same one, if it was given less than all the time for the sake of others that
        turn out to be none.
        """
        if way.service is None or not may_another_help(refusal) or not patience.one_more():
            return None
        try:
            return await self.find_route(request, tried)
        except Refused:
            return way if is_timeout(refusal) else None

    async def reach(
        self, way: Route, request: OutboundRequest, call: Call, connect_seconds: float, now: float
    ) -> Reached:
        """Reach the destination of a route. `now` is Trio's, asked for once a connection.

        Raises:
            Refused: it cannot be reached; nothing of the application was sent.
        """
        match way.protocol:
            case OutboundProtocol.TCP:
                return Reached(SocketEnd(await self.dial_plain(way.destination, connect_seconds)))
            case OutboundProtocol.HBONE:
                stream = await self.connect(way, request, call, connect_seconds, now)
                return Reached(stream, (stream.tunnel,))
            case OutboundProtocol.DOUBLE_HBONE:
                return await self.connect_twice(way, request, call, connect_seconds, now)

    async def dial_plain(self, destination: SocketAddress, connect_seconds: float) -> socket.socket:
        """Connect to a destination that takes plain text."""
        try:
            with trio.fail_after(connect_seconds):
                return await self.sockets.connect(destination)
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.IO, io_text(error))) from error

    async def connect(
        self, way: Route, request: OutboundRequest, call: Call, connect_seconds: float, now: float
    ) -> TunnelStream:
        """CONNECT through a tunnel to the route's destination; the answer was 200."""
        assert way.authority is not None
        key = PoolKey(request.source.identity, way.expected, way.destination, call.client.ip)
        headers = self.headers(way, request, call)
        try:
            asked = self.pool.ask(key, way.authority, headers, now)
            if asked is not None and await asked[0].is_answered_soon(asked[1]):
                stream = asked[1]  # nearly always: no deadline of its own, which costs 24 µs
            else:
                with trio.fail_at(now + self.node.settings.answer_seconds):
                    stream = await self.pool.open(key, way.authority, headers, connect_seconds, asked)
        except H2Failed as error:
            raise Refused(Refusal(Reason.H2, str(error))) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.H2, NO_ANSWER)) from error
        check_answer(stream)
        return stream

    async def connect_twice(
        self, way: Route, request: OutboundRequest, call: Call, connect_seconds: float, now: float
    ) -> Reached:
        """CONNECT to another network's gateway, and through it to whatever ends the inner tunnel there."""
        assert way.authority is not None
        certificate = await self.dialler.certificate(request.source.identity)
        outer = await self.connect(way, request, call, connect_seconds, now)
        inner, peer = await self.dialler.inner_tunnel(outer, certificate, way.inner_expected)
        self.pool.nursery.start_soon(contained, "inner tunnel", partial(self.run_inner, inner, peer))
        headers = [*self.headers(way, request, call), (X_FORWARDED_NETWORK, self.network)]
        try:
            with trio.fail_after(self.node.settings.answer_seconds):
                stream = await inner.open(way.authority, headers)
        except H2Failed as error:
            raise Refused(Refusal(Reason.H2, str(error))) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.H2, NO_ANSWER)) from error
        finally:
            inner.release_when_idle()
        check_answer(stream)
        lines = [value.encode("latin-1") for value in stream.headers.get("baggage", ())]
        baggage = parse_baggage(lines)
        identity = peer.identities[0] if peer.identities else None
        return Reached(stream, (outer.tunnel, inner), baggage or Baggage(), identity)

    async def run_inner(self, inner: ClientTunnel, peer: TlsPeer) -> None:
        """The life of an inner tunnel, which serves one connection."""
        with self.dialler.watch(inner, peer):
            await inner.run()

    def headers(self, way: Route, request: OutboundRequest, call: Call) -> list[tuple[bytes, bytes]]:
        """The headers of a CONNECT, in the order peers expect."""
        host = way.service.hostname if way.service is not None else None
        return [
            (BAGGAGE, self.baggage(request.source)),
            (FORWARDED, encode_forwarded(call.client, host)),
            (TRACEPARENT, str(call.trace).encode()),
        ]

    def baggage(self, source: Workload) -> bytes:
        """The baggage of our workload, encoded once for each version of its record."""
        if source is not self._baggage_of:
            self._baggage_of, self._baggage = source, encode_baggage(source)
        return self._baggage

    @property
    def network(self) -> bytes:
        return self.node.settings.network.encode()


def outcome_of(tunnels: Sequence[Carrier], trouble: str | None) -> Refusal | None:
    """How a relay ended: well, with the relay's trouble, or because a peer's certificate was revoked."""
    if is_revoked(tunnels):
        return Refusal(Reason.CERTIFICATE_REVOKED)
    return None if trouble is None else Refusal(Reason.RELAY, trouble)


def may_another_help(refusal: Refusal) -> bool:
    """Whether another endpoint may do better than the one that failed so."""
    if refusal.reason is Reason.HTTP_STATUS:
        return refusal.detail == "503"  # the peer's proxy could not reach its application
    return refusal.reason in TRY_ANOTHER


def is_timeout(refusal: Refusal) -> bool:
    """Whether the time given ran out, which more of it may mend."""
    return refusal.reason is Reason.HBONE_CONNECT_TIMEOUT or refusal.detail == DEADLINE_TEXT


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
