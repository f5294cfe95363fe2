"""Dialling the peer's proxy: certificate, TCP, TLS, and the tunnel on top; every failure by its reason."""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.failures import io_text
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls import (
    TlsFailed,
    TlsMisconfigured,
    TlsPeer,
    connect_tls,
    describe,
    judge_server,
    proven_peer,
)
from ztunnel_trio.net.tls_memory import MemoryTls
from ztunnel_trio.proxy.client_tunnel import ClientTunnel
from ztunnel_trio.proxy.node import Node
from ztunnel_trio.proxy.pool import PoolKey
from ztunnel_trio.proxy.registry import Cancellable
from ztunnel_trio.proxy.tunnel_stream import Carrier, TunnelStream

REVOKED: Final = "peer certificate revoked by CRL"


@dataclass(slots=True, eq=False)
class Dialler:
    """Dials for one workload, out of its namespace and with its identity."""

    node: Node
    info: WorkloadInfo
    sockets: SocketFactory
    connections: dict[Carrier, set[Cancellable]] = field(default_factory=dict)  # relayed through them

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """Our own certificate.

        Raises:
            Refused: none can be had (`Reason.IDENTITY`).
        """
        try:
            return await self.node.certificates.certificate(identity)
        except Unavailable as error:
            raise Refused(Refusal(Reason.IDENTITY, str(error))) from error

    async def tunnel(self, key: PoolKey, connect_seconds: float) -> tuple[ClientTunnel, TlsPeer]:
        """A new tunnel to the proxy of `key.destination`, whose identity was checked.

        `connect_seconds` bounds the TCP connection.

        Raises:
            Refused: with the reason of the step that failed.
        """
        certificate = await self.certificate(key.identity)
        settings = self.node.settings
        try:
            with trio.fail_after(connect_seconds):
                sock = await self.sockets.connect(key.destination)
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.HBONE_CONNECT_TIMEOUT, io_text(error))) from error
        except OSError as error:
            raise Refused(Refusal(Reason.IO, io_text(error))) from error
        try:
            with trio.fail_after(settings.handshake_seconds):
                tls, peer = await connect_tls(
                    sock,
                    certificate,
                    key.expected,
                    contexts=self.node.contexts,
                    verdict=self.node.verdict_for("source"),
                )
        except TlsMisconfigured as error:
            raise Refused(Refusal(Reason.TLS_CONFIG, str(error))) from error
        except TlsFailed as error:
            raise Refused(Refusal(Reason.IO, str(error))) from error
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.IO, io_text(error))) from error
        return ClientTunnel(self.node.engine, tls, settings.tunnel), peer

    async def inner_tunnel(
        self, outer: TunnelStream, certificate: WorkloadCertificate, expected: tuple[SpiffeId, ...]
    ) -> tuple[ClientTunnel, TlsPeer]:
        """A tunnel inside a stream that leads to another network; the stream is its own from here on.

        Raises:
            Refused: the peer there is not one of `expected`, or the handshake failed.
        """
        engine = self.node.engine
        try:
            context = self.node.contexts.client_context(certificate)
        except TlsMisconfigured as error:
            outer.close()
            raise Refused(Refusal(Reason.TLS_CONFIG, str(error))) from error
        memory = MemoryTls(engine, outer, context, server_side=False)
        try:
            with trio.fail_after(self.node.settings.handshake_seconds):
                await memory.handshake()
            peer = proven_peer(memory.tls)
            why_not = judge_server(peer, expected)
            if why_not is None and (verdict := self.node.verdict_for("source")) is not None:
                why_not = verdict(peer)
            if why_not is not None:
                raise TlsFailed(why_not)
        except BaseException as error:
            memory.stop()
            match error:
                case ssl.SSLError():
                    raise Refused(Refusal(Reason.IO, describe(error))) from error
                case TlsFailed():
                    raise Refused(Refusal(Reason.IO, str(error))) from error
                case OSError() | trio.TooSlowError():
                    raise Refused(Refusal(Reason.IO, io_text(error))) from error
            raise
        return ClientTunnel(engine, memory, self.node.settings.tunnel), peer

    @contextmanager
    def watch(self, tunnel: ClientTunnel, peer: TlsPeer) -> Iterator[None]:
        """End the tunnel and its connections when its peer's certificate is revoked while the body runs."""
        if self.node.revocations is None:
            yield
            return
        on_revoked = partial(self.revoke, tunnel)
        registration = self.node.revocations.register(peer.chain_der, on_revoked, reporter="source")
        try:
            yield
        finally:
            registration.release()

    def trust(self, tunnels: Sequence[Carrier], body: Cancellable) -> None:
        """Until `distrust`, cancel `body` when the peer of one of these tunnels is revoked."""
        for tunnel in tunnels:
            self.connections.setdefault(tunnel, set()).add(body)

    def distrust(self, tunnels: Sequence[Carrier], body: Cancellable) -> None:
        """The connection is over."""
        for tunnel in tunnels:
            bodies = self.connections[tunnel]
            bodies.discard(body)
            if not bodies:
                del self.connections[tunnel]

    def revoke(self, tunnel: ClientTunnel) -> None:
        """Nobody trusts the peer of this tunnel any more."""
        for body in self.connections.get(tunnel, ()):
            body.cancel(reason=REVOKED)
        tunnel.abort(REVOKED)


def is_revoked(tunnels: Sequence[Carrier]) -> bool:
    """Whether one of these tunnels ended because its peer's certificate was revoked."""
    for tunnel in tunnels:  # noqa: SIM110  every connection comes here: no generator
        if tunnel.failure_text == REVOKED:
            return True
    return False
