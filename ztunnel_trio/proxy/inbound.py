"""Port 15008: HBONE entering the pod.

The TLS handshake proves who calls; each CONNECT is then admitted, judged and dialled on its own, and only
answered 200 when the application took the connection.
"""

import socket
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ztunnel_trio.decide.admit import Admission, InboundRequest, NeedAddress, admit, guess_service
from ztunnel_trio.decide.authorize import Rejection
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.address import IPAddress, NetworkAddress, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.connection import Direction, InboundConnection
from ztunnel_trio.model.ending import Revoked
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused, answer_to
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.listener import local_address
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.relay import SocketEnd, pair_of
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls.failures import TlsFailed, TlsMisconfigured
from ztunnel_trio.net.tls.handshake import Secured, accept_tls
from ztunnel_trio.net.tls.peer import TlsPeer
from ztunnel_trio.observe.access.facts import ConnectionFacts
from ztunnel_trio.observe.access.record import ConnectionRecord
from ztunnel_trio.observe.log import Bare, span
from ztunnel_trio.proxy import farewell
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import NodeParts
from ztunnel_trio.proxy.registry import InboundEntry, Registry
from ztunnel_trio.proxy.serving import log
from ztunnel_trio.proxy.tunnel.either import Tunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.stream import H2Failed
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.wire.header_values import (
    BAGGAGE,
    FORWARDED,
    TRACEPARENT,
    X_FORWARDED_NETWORK,
    TraceParent,
    came_through_gateway,
    encode_baggage,
    parse_baggage,
    parse_forwarded_host,
)
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.proxy_protocol import encode_header

HEADER_TEXTS: Final = {name: name.decode() for name in (BAGGAGE, FORWARDED, TRACEPARENT, X_FORWARDED_NETWORK)}


@dataclass(slots=True, eq=False)
class Inbound:
    """Serves the HBONE that arrives for one workload."""

    node: NodeParts
    info: WorkloadInfo
    sockets: SocketFactory
    registry: Registry
    judge: Judge
    drain: Drain
    is_transparent: bool  # the application may see the client's own address
    alive: set[Tunnel]  # every tunnel that runs; the owner's

    async def serve(self, sock: socket.socket, client: SocketAddress) -> None:
        """Serve one TCP connection: handshake, then a tunnel until either side ends it."""
        with self.node.metrics.sockets_open("destination"):
            local = local_address(sock)
            secured = await self.secure(sock, client, local)
            if secured is not None:
                node = self.node
                abused = partial(node.flood_cut, secured.peer)
                tunnel = ServerTunnel(node.engine, secured.tls, node.settings.tunnel, abused)
                await TunnelServer(self, tunnel, client, local, secured.peer).run()

    async def secure(
        self, sock: socket.socket, client: SocketAddress, local: SocketAddress
    ) -> Secured | None:
        """Shake hands; None, and an access line, where that fails."""
        with self.node.access.connection(client, local, Direction.INBOUND):
            return await self.shake_hands(sock)
        return None

    async def certificate(self) -> WorkloadCertificate:
        """The certificate of our workload.

        Raises:
            Refused: there is none now.
        """
        settings = self.node.settings
        workload = await self.node.live.local_workload(self.info, seconds=settings.local_workload_seconds)
        if workload is None:
            raise Refused(Refusal(Reason.SIGNING, f"workload is unknown: {self.info}"))
        try:
            with trio.fail_after(settings.handshake_seconds):
                return await self.node.certificates.certificate(workload.identity)
        except Unavailable as error:
            raise Refused(Refusal(Reason.SIGNING, str(error))) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.SIGNING, cause=ending_of(error))) from error

    async def shake_hands(self, sock: socket.socket) -> Secured:
        """Take the peer's TLS, on the certificate of our workload.

        Raises:
            Refused: no certificate of ours, or the peer's TLS failed.
        """
        certificate = await self.certificate()
        try:
            with trio.fail_after(self.node.settings.handshake_seconds):
                return await accept_tls(
                    sock,
                    certificate,
                    contexts=self.node.contexts,
                    verdict=self.node.verdict_for("destination"),
                    farewell=farewell.to_client,
                )
        except TlsMisconfigured as error:
            raise Refused(Refusal(Reason.TLS_HANDSHAKE, str(error))) from error
        except TlsFailed as error:
            raise Refused(Refusal(Reason.TLS_HANDSHAKE, cause=error.ending)) from error
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.TLS_HANDSHAKE, cause=ending_of(error))) from error

    def spoof(self, client: SocketAddress, admission: Admission) -> IPAddress | None:
        """The source address the application is to see, None for our own."""
        if admission.is_loopback:
            return admission.upstream.ip  # equal to the destination: no address is bound
        return client.ip if self.is_transparent else None


@dataclass(slots=True, eq=False)
class TunnelServer:
    """The streams of one inbound tunnel."""

    inbound: Inbound
    tunnel: ServerTunnel
    client: SocketAddress
    local: SocketAddress
    peer: TlsPeer
    _shown: Bare = field(init=False)  # the client, as every line shows it
    _answer_of: Workload | None = None
    _answer: list[Field] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._shown = Bare(self.client)

    @property
    def identity(self) -> SpiffeId | None:
        return self.peer.identities[0] if self.peer.identities else None

    async def run(self) -> None:
        """Serve streams until the tunnel ends; a drain lets those that run finish."""
        revocations, alive = self.inbound.node.revocations, self.inbound.alive
        watch = None
        if revocations is not None:
            watch = revocations.register(self.peer.chain_der, self.revoke, reporter="destination")
        alive.add(self.tunnel)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.drain_when_asked)
                await self.tunnel.run(self.serve_one)
                nursery.cancel_scope.cancel(reason="tunnel ended")
        finally:
            alive.discard(self.tunnel)
            if watch is not None:
                watch.release()

    async def drain_when_asked(self) -> None:
        """Tell the peer to open no more streams once the process drains."""
        await self.inbound.drain.requested.wait()
        self.tunnel.drain()

    def revoke(self) -> None:
        """The peer's certificate was revoked: everything on the tunnel ends, with that reason."""
        self.tunnel.end(Revoked())

    async def serve_one(self, request: TunnelRequest) -> None:
        """Serve one CONNECT, with one access line; a failure of ours ends this stream and no other."""
        with self.span_of(request):
            try:
                access = self.inbound.node.access
                with access.connection(self.client, self.local, Direction.INBOUND) as record:
                    await self.carry(request, record)
            except* Exception as group:  # noqa: BLE001  # a bug: loud, and contained
                log.error("%s failed", "stream", exc_info=group)

    def span_of(self, request: TunnelRequest) -> span:
        """What the lines of this request carry."""
        trace = TraceParent.parse(first(request, TRACEPARENT)) or self.inbound.node.new_trace()
        return span("inbound", id=Bare(trace.trace_id), peer=self._shown)

    async def carry(self, request: TunnelRequest, record: ConnectionRecord) -> None:
        """Admit, judge, reach the application, answer, and relay until it is over.

        Raises:
            Refused: it came to nothing; the client has been told.
        """
        entry: InboundEntry | None = None
        registry = self.inbound.registry
        try:
            try:
                entry, admission = await self.hold(request)
                pair = await self.establish(request, entry, admission, record)
            except Refused as error:
                request.refuse(answer_to(error.refusal.reason))
                raise
            del request, admission  # an idle connection lives long
            if pair is not None:
                record.finish(await entry.relay(pair))
            elif entry.ending is not None:
                record.finish(entry.ending)
        finally:
            if entry is not None:
                registry.inbound.discard(entry)

    async def hold(self, request: TunnelRequest) -> tuple[InboundEntry, Admission]:
        """Admit a CONNECT and list it, before it is judged.

        Raises:
            Refused: it may not be admitted.
        """
        workload, admission = await self.admit(request)
        connection = InboundConnection(
            source=self.client,
            destination=admission.destination,
            identity=self.identity,
            network=self.inbound.node.settings.network,
        )
        entry = InboundEntry(connection, workload, parse_forwarded_host(first(request, FORWARDED)))
        self.inbound.registry.inbound.add(entry)
        return entry, admission

    async def admit(self, request: TunnelRequest) -> tuple[Workload, Admission]:
        """Whether and where to this CONNECT may go, before any policy is asked.

        Raises:
            Refused: it may not, or nowhere.
        """
        node = self.inbound.node
        workload = node.live.mesh.local_workload(self.inbound.info)
        if workload is None:
            workload = await node.live.local_workload(
                self.inbound.info, seconds=node.settings.local_workload_seconds
            )
        asked = frozenset[str]()
        while True:
            match admit(
                InboundRequest(
                    method=request.method,
                    authority=request.authority,
                    connection_ip=self.local.ip,
                    info=self.inbound.info,
                    workload=workload,
                ),
                node.live.mesh,
                network=node.settings.network,
                illegal_ports=node.settings.illegal_ports,
                on_demand=node.settings.on_demand,
                localhost_app_tunnel=node.settings.localhost_app_tunnel,
                asked=asked,
            ):
                case Admission() as admission:
                    assert workload is not None
                    return workload, admission
                case Refusal() as refusal:
                    raise Refused(refusal)
                case NeedAddress(name=name):
                    await node.demand(name)
                    asked |= {name}

    async def establish(
        self, request: TunnelRequest, entry: InboundEntry, admission: Admission, record: ConnectionRecord
    ) -> Pair | None:
        """Judge, dial the application, answer. None: it was ended from outside meanwhile.

        Raises:
            Refused: it may not, or could not be reached, or the client has gone.
        """
        inbound, workload = self.inbound, entry.workload
        verdict = inbound.judge.authorize(entry.connection, workload)
        record.open(self.facts(request, entry, admission, is_welcome=not isinstance(verdict, Rejection)))
        if isinstance(verdict, Rejection):
            raise Refused(Refusal(Reason.POLICY_REJECTION, verdict.reason))
        try:
            upstream = await entry.dial(
                inbound.sockets,
                admission.upstream,
                inbound.spoof(self.client, admission),
                inbound.node.settings.connect_seconds,
            )
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.CONNECT_FAILED, cause=ending_of(error))) from error
        if upstream is None:
            return None
        try:
            stream = request.accept(self.answer(workload))
            if admission.tunnel_target is not None:
                # A fresh connection takes these few bytes at once.
                upstream.sendall(encode_header(self.client, admission.tunnel_target, self.identity))
        except H2Failed as error:
            upstream.close()
            raise Refused(Refusal(Reason.H2, cause=error.ending)) from error
        except OSError as error:
            upstream.close()
            raise Refused(Refusal(Reason.IO, cause=ending_of(error))) from error
        return pair_of(inbound.node.engine, stream, SocketEnd(upstream), record.traffic)

    def answer(self, workload: Workload) -> list[tuple[bytes, bytes]]:
        """The headers of a 200."""
        if not self.inbound.node.settings.response_baggage:
            return []
        if workload is not self._answer_of:  # encoded once for each version of the record
            self._answer_of, self._answer = workload, [(BAGGAGE, encode_baggage(workload))]
        return self._answer

    def facts(
        self, request: TunnelRequest, entry: InboundEntry, admission: Admission, *, is_welcome: bool
    ) -> ConnectionFacts:
        """What the access log and the metrics tell of this stream.

        What a peer says of itself is believed once it `is_welcome`: a refused one opens no series by it.
        """
        settings, mesh = self.inbound.node.settings, self.inbound.node.live.mesh
        source, workload = None, entry.workload
        if not came_through_gateway(first(request, X_FORWARDED_NETWORK), settings.network):
            source = mesh.workload_at(NetworkAddress(settings.network, self.client.ip))
        is_told = is_welcome and settings.response_baggage
        return ConnectionFacts(
            direction=Direction.INBOUND,
            source=self.client,
            destination=self.local,
            hbone_target=admission.authority,
            source_workload=source,
            source_identity=self.identity,
            source_baggage=parse_baggage(values(request, BAGGAGE)) if is_told else None,
            destination_workload=workload,
            destination_identity=workload.identity,
            destination_service=guess_service(
                admission.services, entry.host, workload, admission.destination.port
            ),
            mutual_tls=True,
        )


def values(request: TunnelRequest, name: bytes) -> list[bytes]:
    """Every value of a header of the request."""
    return [value.encode("latin-1") for value in request.headers.get(HEADER_TEXTS[name], ())]


def first(request: TunnelRequest, name: bytes) -> bytes | None:
    """The first value of a header of the request."""
    found = request.headers.get(HEADER_TEXTS[name])
    return found[0].encode("latin-1") if found else None
