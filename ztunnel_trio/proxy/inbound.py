"""Port 15008: HBONE entering the pod.

The TLS handshake proves who calls; each CONNECT is then admitted, judged and dialled on its own, and only
answered 200 when the application took the connection.
"""

import socket
import ssl
from dataclasses import dataclass, field
from functools import partial

import trio

from ztunnel_trio.decide.admit import Admission, InboundRequest, NeedAddress, admit, guess_service
from ztunnel_trio.decide.authorize import Rejection
from ztunnel_trio.errors import Reason, Refusal, Refused, Unavailable
from ztunnel_trio.model.address import IPAddress, NetworkAddress, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.connection import Direction, InboundConnection
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.net.failures import io_text
from ztunnel_trio.net.listener import local_address
from ztunnel_trio.net.relay import SocketEnd, relay
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls import TlsFailed, TlsPeer, accept_tls
from ztunnel_trio.observe.access_log import ConnectionFacts, ConnectionRecord, status_of
from ztunnel_trio.observe.log import Bare, span
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import Node
from ztunnel_trio.proxy.registry import Hold, InboundKey, Registry
from ztunnel_trio.proxy.serving import contained, counted, ended_by
from ztunnel_trio.proxy.tunnel import ServerTunnel, Tunnel, TunnelRequest
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
from ztunnel_trio.wire.proxy_protocol import encode_header


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
        with counted(self.node.metrics.sockets_open("destination")):
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
    holds: set[Hold] = field(default_factory=set)

    @property
    def identity(self) -> SpiffeId | None:
        return self.who.identities[0] if self.who.identities else None

    async def run(self) -> None:
        """Serve streams until the tunnel ends; a drain lets those that run finish."""
        revocations, alive = self.inbound.node.revocations, self.inbound.alive
        watch = None
        if revocations is not None:
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
        for hold in self.holds:
            hold.end(Refusal(Reason.CERTIFICATE_REVOKED))
        self.tunnel.abort("peer certificate revoked by CRL")

    async def serve_one(self, request: TunnelRequest) -> None:
        """Serve one CONNECT; a failure of ours ends this stream and no other."""
        trace = TraceParent.parse(first(request, TRACEPARENT)) or self.inbound.node.new_trace()
        with span("inbound", id=Bare(trace.trace_id), peer=Bare(self.client)):
            await contained("stream", partial(self.serve, request))

    async def serve(self, request: TunnelRequest) -> None:
        """Admit, judge and carry one CONNECT; leaves one access line whatever happens."""
        access = self.inbound.node.access
        began = access.now()
        deny = partial(access.refuse, source=self.client, destination=self.local, direction=Direction.INBOUND)
        try:
            workload, admission = await self.admit(request)
        except Refused as error:
            request.refuse(status_of(error.refusal.reason))
            deny(refusal=error.refusal)
            return
        except BaseException as error:
            deny(refusal=ended_by(error))
            raise
        connection = InboundConnection(
            source=self.client,
            destination=admission.destination,
            identity=self.identity,
            network=self.inbound.node.settings.network,
        )
        host = parse_forwarded_host(first(request, FORWARDED))
        record = access.open(self.facts(request, workload, admission, host), began=began)
        with (
            trio.CancelScope() as scope,
            self.inbound.registry.hold(InboundKey(connection, host), workload, scope) as hold,
        ):
            self.holds.add(hold)
            try:
                verdict = self.inbound.judge.authorize(connection, workload)
                if isinstance(verdict, Rejection):
                    outcome: Refusal | None = Refusal(Reason.POLICY_REJECTION, verdict.reason)
                    request.refuse(status_of(Reason.POLICY_REJECTION))
                else:
                    outcome = await self.carry(request, workload, admission, record)
            except BaseException as error:
                record.finish(hold.refusal or ended_by(error))
                raise
            finally:
                self.holds.discard(hold)
            record.finish(hold.refusal or outcome)

    async def admit(self, request: TunnelRequest) -> tuple[Workload, Admission]:
        """Whether and where to this CONNECT may go, before any policy is asked.

        Raises:
            Refused: it may not, or nowhere.
        """
        node = self.inbound.node
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

    async def carry(
        self, request: TunnelRequest, workload: Workload, admission: Admission, record: ConnectionRecord
    ) -> Refusal | None:
        """Dial the application, answer 200, relay; what it came to."""
        node = self.inbound.node
        try:
            upstream, is_connected = self.inbound.sockets.connect_nowait(
                admission.upstream, self.inbound.spoof(self.client, admission)
            )
            if not is_connected:
                with trio.fail_after(node.settings.connect_seconds):
                    await self.inbound.sockets.finish_connecting(upstream)
        except (OSError, trio.TooSlowError) as error:
            refusal = Refusal(Reason.CONNECT_FAILED, io_text(error))
            request.refuse(status_of(refusal.reason))
            return refusal
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
        trouble = await relay(node.engine, stream, SocketEnd(upstream), record.traffic)
        return None if trouble is None else Refusal(Reason.RELAY, trouble)

    def answer(self, workload: Workload) -> list[tuple[bytes, bytes]]:
        """The headers of a 200."""
        is_wanted = self.inbound.node.settings.response_baggage
        return [(BAGGAGE, encode_baggage(workload))] if is_wanted else []

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
    return [value.encode("latin-1") for value in request.headers.get(name.decode(), ())]


def first(request: TunnelRequest, name: bytes) -> bytes | None:
    """The first value of a header of the request."""
    return next(iter(values(request, name)), None)
