"""Dialling the peer's proxy: certificate, TCP, TLS, and the tunnel on top; every failure by its reason."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.ending import Ending, Revoked
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.net.tls.failures import TlsFailed, TlsMisconfigured
from ztunnel_trio.net.tls.handshake import connect_tls
from ztunnel_trio.net.tls.memory import MemoryTls
from ztunnel_trio.net.tls.peer import TlsPeer, judge_server, proven_peer
from ztunnel_trio.net.transport import Transport
from ztunnel_trio.proxy import farewell
from ztunnel_trio.proxy.node import NodeParts
from ztunnel_trio.proxy.pool_choice import PoolKey
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.stream import TunnelStream


@dataclass(slots=True, eq=False)
class Dialler:
    """Dials for one workload, out of its namespace and with its identity."""

    node: NodeParts
    info: WorkloadInfo
    sockets: SocketFactory

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """Our own certificate.

        Raises:
            Refused: none can be had, or not in time (`Reason.IDENTITY`).
        """
        try:
            with trio.fail_after(self.node.settings.handshake_seconds):
                return await self.node.certificates.certificate(identity)
        except Unavailable as error:
            raise Refused(Refusal(Reason.IDENTITY, str(error))) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.IDENTITY, cause=ending_of(error))) from error

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
            raise Refused(Refusal(Reason.HBONE_CONNECT_TIMEOUT, cause=ending_of(error))) from error
        except OSError as error:
            raise Refused(Refusal(Reason.IO, cause=ending_of(error))) from error
        try:
            with trio.fail_after(settings.handshake_seconds):
                tls, peer = await connect_tls(
                    sock,
                    certificate,
                    key.expected,
                    contexts=self.node.contexts,
                    verdict=self.node.verdict_for("source"),
                    farewell=farewell.to_server,
                )
        except TlsMisconfigured as error:
            raise Refused(Refusal(Reason.TLS_CONFIG, str(error))) from error
        except TlsFailed as error:
            raise Refused(Refusal(Reason.IO, cause=error.ending)) from error
        except (OSError, trio.TooSlowError) as error:
            raise Refused(Refusal(Reason.IO, cause=ending_of(error))) from error
        return self.tunnel_over(tls, peer), peer

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
        is_ours = True
        try:
            with trio.fail_after(self.node.settings.handshake_seconds):
                await memory.handshake()
            peer = proven_peer(memory.tls, certificate)
            refusal = judge_server(peer, expected) or self.verdict(peer)
            if refusal is not None:
                raise TlsFailed(refusal)
            is_ours = False
        except TlsFailed as error:
            memory.refuse(farewell.to_server(error.ending))
            raise Refused(Refusal(Reason.IO, cause=error.ending)) from error
        except (OSError, trio.TooSlowError) as error:  # OpenSSL's errors are OSErrors, too
            raise Refused(Refusal(Reason.IO, cause=ending_of(error))) from error
        finally:
            if is_ours:
                memory.stop()
        return self.tunnel_over(memory, peer), peer

    def tunnel_over(self, tls: ssl.SSLSocket | Transport, peer: TlsPeer) -> ClientTunnel:
        """The tunnel of an established TLS connection to a peer."""
        node = self.node
        return ClientTunnel(node.engine, tls, node.settings.tunnel, partial(node.flood_cut, peer))

    def verdict(self, peer: TlsPeer) -> Ending | None:
        """Why a proven server is nevertheless refused, or None."""
        verdict = self.node.verdict_for("source")
        return None if verdict is None else verdict(peer)

    @contextmanager
    def watch(self, tunnel: ClientTunnel, peer: TlsPeer) -> Iterator[None]:
        """End the tunnel and its connections when its peer's certificate is revoked while the body runs."""
        if self.node.revocations is None:
            yield
            return
        on_revoked = partial(tunnel.end, Revoked())
        registration = self.node.revocations.register(peer.chain_der, on_revoked, reporter="source")
        try:
            yield
        finally:
            registration.release()
