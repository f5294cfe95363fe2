"""Port 15008: HBONE entering the pod.

The TLS handshake proves who calls; each CONNECT is then admitted, judged and dialled on its own, and only
answered 200 when the application took the connection.
"""

import socket
import ssl
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
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.net.failures import io_text
from ztunnel_trio.net.listener import local_address
from ztunnel_trio.net.pair import Pair
from ztunnel_trio.net.relay import SocketEnd, pair_of
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls import TlsFailed, TlsPeer, accept_tls
from ztunnel_trio.observe.access_log import ConnectionFacts, status_of
from ztunnel_trio.observe.log import Bare, span
from ztunnel_trio.proxy.held import Held
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import Node
from ztunnel_trio.proxy.registry import Hold, InboundKey, Registry
from ztunnel_trio.proxy.server_tunnel import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.serving import ended_by, log
from ztunnel_trio.proxy.tunnel import Tunnel
from ztunnel_trio.proxy.tunnel_stream import H2Failed
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

    node: Node
    info: WorkloadInfo
    sockets: SocketFactory
    registry: Registry
    judge: Judge
    drain: Drain
    is_transparent: bool  # the application may see the client's own address
    alive: set[Tunnel]  # every tunnel that runs; the owner's

    async def serve(self, sock: socket.socket, peer: SocketAddress) -> None:
        """Serve one TCP connection: handshake, then a tunnel until either side ends it."""
        with self.node.metrics.sockets_open("destination"):
            local = local_address(sock)
            deny = partial(
                self.node.access.refuse, source=peer, destination=local, direction=Direction.INBOUND
            )
            try:
                tls, who = await self.shake_hands(sock)
            except Refused as error:
                deny(refusal=error.refusal)
                return
            except BaseException as error:
                deny(refusal=ended_by(error))
                raise
            tunnel = ServerTunnel(self.node.engine, tls, self.node.settings.tunnel)
            await TunnelServer(self, tunnel, peer, local, who).run()

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
            raise Refused(Refusal(Reason.SIGNING, io_text(error))) from error

    async def shake_hands(self, sock: socket.socket) -> tuple[ssl.SSLSocket, TlsPeer]:
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
                )
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.TLS_HANDSHAKE, io_text(error))) from error
        except TlsFailed as error:
            raise Refused(Refusal(Reason.TLS_HANDSHAKE, str(error))) from error
        except OSError as error:
            raise Refused(Refusal(Reason.TLS_HANDSHAKE, io_text(error))) from error

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
    who: TlsPeer
    holds: set[Hold] | None = None  # of its streams, where the peer's certificate can be revoked
    _peer: Bare = field(init=False)  # the client, as every line shows it
    _answer_of: Workload | None = None
    _answer: list[Field] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._peer = Bare(self.client)

    @property
    def identity(self) -> SpiffeId | None:
        return self.who.identities[0] if self.who.identities else None

    async def run(self) -> None:
        """Serve streams until the tunnel ends; a drain lets those that run finish."""
        revocations, alive = self.inbound.node.revocations, self.inbound.alive
        watch = None
        if revocations is not None:
            self.holds = set()
            watch = revocations.register(self.who.chain_der, self.revoke, reporter="destination")
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
        for hold in self.holds or ():
            hold.end(Refusal(Reason.CERTIFICATE_REVOKED))
        self.tunnel.abort("peer certificate revoked by CRL")

    async def serve_one(self, request: TunnelRequest) -> None:
        """Serve one CONNECT, with one access line; a failure of ours ends this stream and no other."""
        with self.span_of(request):
            try:
                held = await self.establish(request)
                if held is not None:
                    await held.carry()
            except* Exception as group:  # noqa: BLE001  # a bug: loud, and contained
                log.error("%s failed", "stream", exc_info=group)

    def span_of(self, request: TunnelRequest) -> span:
        """What the lines of this request carry."""
        trace = TraceParent.parse(first(request, TRACEPARENT)) or self.inbound.node.new_trace()
        return span("inbound", id=Bare(trace.trace_id), peer=self._peer)

    async def establish(self, request: TunnelRequest) -> Held | None:
        """Admit, judge, reach the application and answer.

        None: it came to nothing, which the client and the access line have been told.
        """
        access = self.inbound.node.access
        began = access.now()
        try:
            workload, admission = await self.admit(request)
        except Refused as error:
            request.refuse(status_of(error.refusal.reason))
            self.deny(error.refusal)
            return None
        except BaseException as error:
            self.deny(ended_by(error))
            raise
        connection = InboundConnection(
            source=self.client,
            destination=admission.destination,
            identity=self.identity,
            network=self.inbound.node.settings.network,
        )
        host = parse_forwarded_host(first(request, FORWARDED))
        held = Held(
            self.inbound.registry,
            InboundKey(connection, host),
            Hold(workload),
            access.open(self.facts(request, workload, admission, host), began=began),
            self.holds,
        )
        held.begin()
        try:
            reached = await self.connect(request, admission, held)
        except BaseException as error:
            held.finish(ended_by(error))
            raise
        if isinstance(reached, Pair):
            held.pair = reached
            return held
        held.finish(reached)
        return None

    def deny(self, refusal: Refusal) -> None:
        """Leave the line of a CONNECT that got no record."""
        self.inbound.node.access.refuse(
            source=self.client, destination=self.local, direction=Direction.INBOUND, refusal=refusal
        )

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

    async def connect(
        self, request: TunnelRequest, admission: Admission, held: Held
    ) -> Pair | Refusal | None:
        """Judge, dial the application, answer. None: it was ended from outside meanwhile."""
        inbound, workload = self.inbound, held.hold.workload
        verdict = inbound.judge.authorize(held.key.connection, workload)
        if isinstance(verdict, Rejection):
            request.refuse(status_of(Reason.POLICY_REJECTION))
            return Refusal(Reason.POLICY_REJECTION, verdict.reason)
        try:
            upstream = await held.dial(
                inbound.sockets,
                admission.upstream,
                inbound.spoof(self.client, admission),
                inbound.node.settings.connect_seconds,
            )
        except (OSError, trio.TooSlowError) as error:
            refusal = Refusal(Reason.CONNECT_FAILED, io_text(error))
            request.refuse(status_of(refusal.reason))
            return refusal
        if upstream is None:
            return None
        try:
            stream = request.accept(self.answer(workload))
            if admission.tunnel_target is not None:
                # A fresh connection takes these few bytes at once.
                upstream.sendall(encode_header(self.client, admission.tunnel_target, self.identity))
        except H2Failed as error:
            upstream.close()
            return Refusal(Reason.H2, str(error))
        except OSError as error:
            upstream.close()
            return Refusal(Reason.IO, io_text(error))
        return pair_of(inbound.node.engine, stream, SocketEnd(upstream), held.record.traffic)

    def answer(self, workload: Workload) -> list[tuple[bytes, bytes]]:
        """The headers of a 200."""
        if not self.inbound.node.settings.response_baggage:
            return []
        if workload is not self._answer_of:  # encoded once for each version of the record
            self._answer_of, self._answer = workload, [(BAGGAGE, encode_baggage(workload))]
        return self._answer

    def facts(
        self, request: TunnelRequest, workload: Workload, admission: Admission, host: str | None
    ) -> ConnectionFacts:
        """What the access log and the metrics tell of this stream."""
        settings, mesh = self.inbound.node.settings, self.inbound.node.live.mesh
        source = None
        if not came_through_gateway(first(request, X_FORWARDED_NETWORK), settings.network):
            source = mesh.workload_at(NetworkAddress(settings.network, self.client.ip))
        baggage = parse_baggage(values(request, BAGGAGE)) if settings.response_baggage else None
        return ConnectionFacts(
            direction=Direction.INBOUND,
            source=self.client,
            destination=self.local,
            hbone_target=admission.authority,
            source_workload=source,
            source_identity=self.identity,
            source_baggage=baggage,
            destination_workload=workload,
            destination_identity=workload.identity,
            destination_baggage=None,
            destination_service=guess_service(admission.services, host, workload, admission.destination.port),
            mutual_tls=True,
        )


def values(request: TunnelRequest, name: bytes) -> list[bytes]:
    """Every value of a header of the request."""
    return [value.encode("latin-1") for value in request.headers.get(HEADER_TEXTS[name], ())]


def first(request: TunnelRequest, name: bytes) -> bytes | None:
    """The first value of a header of the request."""
    found = request.headers.get(HEADER_TEXTS[name])
    return found[0].encode("latin-1") if found else None
