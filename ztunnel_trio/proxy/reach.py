"""Reaching the destination of a route: in plain text, through HBONE, or through HBONE inside HBONE."""

from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import trio

from ztunnel_trio.decide.route import OutboundRequest, Route
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.baggage import Baggage
from ztunnel_trio.model.ending import AnsweredStatus, NoAnswer
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.relay import Endpoint, SocketEnd
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls.peer import TlsPeer
from ztunnel_trio.proxy.dialler import Dialler
from ztunnel_trio.proxy.node import NodeParts
from ztunnel_trio.proxy.pool import Pool, StreamRequest
from ztunnel_trio.proxy.pool_choice import PoolKey
from ztunnel_trio.proxy.serving import contained
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.stream import H2Failed, TunnelStream
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
from ztunnel_trio.wire.http2.compression import Field

OK: Final = 200  # the one answer that is yes


class Reached(NamedTuple):
    """The end of a connection at its destination.

    `baggage` and `identity` are what the inner peer of a double tunnel told of itself.
    """

    end: Endpoint
    baggage: Baggage | None = None
    identity: SpiffeId | None = None


class Attempt(NamedTuple):
    """One try: along which route, for whom, and how long the TCP connection may take.

    `now` is Trio's, asked for once a try.
    """

    route: Route
    request: OutboundRequest
    client: SocketAddress
    trace: TraceParent
    connect_seconds: float
    now: float


@dataclass(slots=True, eq=False)
class Reach:
    """Reaches for one workload. Every failure is a `Refused`; nothing of the application was sent then."""

    node: NodeParts
    sockets: SocketFactory
    pool: Pool
    dialler: Dialler
    _baggage_of: Workload | None = None
    _baggage: bytes = b""

    async def plain(self, attempt: Attempt) -> Reached:
        """Connect to a destination that takes plain text."""
        try:
            with trio.fail_after(attempt.connect_seconds):
                return Reached(SocketEnd(await self.sockets.connect(attempt.route.destination)))
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.IO, cause=ending_of(error))) from error

    async def hbone(self, attempt: Attempt) -> Reached:
        """CONNECT through a tunnel to the route's destination."""
        stream = await self.pool.stream(self.stream_request(attempt), attempt.now)
        check_answer(stream)
        return Reached(stream)

    async def double_hbone(self, attempt: Attempt) -> Reached:
        """CONNECT to another network's gateway, and through it to whatever ends the inner tunnel there."""
        route = attempt.route
        assert route.authority is not None
        certificate = await self.dialler.certificate(attempt.request.source.identity)
        outer = await self.pool.stream(self.stream_request(attempt), attempt.now)
        check_answer(outer)
        inner, peer = await self.dialler.inner_tunnel(outer, certificate, route.inner_expected)
        self.pool.nursery.start_soon(contained, "inner tunnel", partial(self.run_inner, inner, peer))
        headers = [*self.headers(attempt), (X_FORWARDED_NETWORK, self.node.settings.network.encode())]
        try:
            with trio.fail_after(self.node.settings.answer_seconds):
                stream = await inner.open(route.authority, headers)
        except H2Failed as error:
            raise Refused(Refusal(Reason.H2, cause=error.ending)) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.H2, cause=NoAnswer())) from error
        finally:
            inner.release_when_idle()
        check_answer(stream)
        lines = [value.encode("latin-1") for value in stream.headers.get("baggage", ())]
        identity = peer.identities[0] if peer.identities else None
        return Reached(stream, parse_baggage(lines) or Baggage(), identity)

    async def run_inner(self, inner: ClientTunnel, peer: TlsPeer) -> None:
        """The life of an inner tunnel, which serves one connection."""
        with self.dialler.watch(inner, peer):
            await inner.run()

    def stream_request(self, attempt: Attempt) -> StreamRequest:
        """What is asked of the pool."""
        route, request = attempt.route, attempt.request
        assert route.authority is not None
        return StreamRequest(
            PoolKey(request.source.identity, route.expected, route.destination, attempt.client.ip),
            route.authority,
            self.headers(attempt),
            attempt.connect_seconds,
            attempt.now + self.node.settings.answer_seconds,
        )

    def headers(self, attempt: Attempt) -> list[Field]:
        """The headers of a CONNECT, in the order peers expect."""
        service, source = attempt.route.service, attempt.request.source
        if source is not self._baggage_of:  # encoded once for each version of its record
            self._baggage_of, self._baggage = source, encode_baggage(source)
        return [
            (BAGGAGE, self._baggage),
            (FORWARDED, encode_forwarded(attempt.client, None if service is None else service.hostname)),
            (TRACEPARENT, str(attempt.trace).encode()),
        ]


def check_answer(stream: TunnelStream) -> None:
    """Let only a 200 pass; the stream of any other answer is given up."""
    if stream.status != OK:
        stream.close()
        raise Refused(Refusal(Reason.HTTP_STATUS, cause=AnsweredStatus(stream.status)))
