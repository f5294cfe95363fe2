"""HBONE spoken by the lab itself: waypoints, east-west gateways, and peers with any certificate.

`HboneServer` ends tunnels on a host and gives every CONNECT to a handler: `answering` runs an application on
it, `forwarding` carries it on as plain TCP, which is what an east-west gateway does with the tunnel inside.
`open_tunnel` dials as a proxy would, from a host outside the mesh.
"""

import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab.apps import Handler
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.model.address import HboneTarget, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate, parse_chain
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.listener import peer_address
from ztunnel_trio.net.relay import SocketEnd, relay
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.failures import TlsFailed
from ztunnel_trio.net.tls.handshake import accept_tls, connect_tls
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import H2Failed, TunnelStream

REFUSED: Final = 503


@dataclass(frozen=True, slots=True)
class Connect:
    """One CONNECT as it arrived: where to, its headers, whose certificate the tunnel showed, from where."""

    authority: str
    headers: Mapping[str, Sequence[str]]
    identity: SpiffeId | None
    client: SocketAddress


@dataclass(slots=True)
class Bytes:
    """What a relay counts into."""

    to_destination: int = 0
    to_source: int = 0


Serve = Callable[[Engine, TunnelRequest], Awaitable[None]]


def certificate_of(authority: Authority, identity: SpiffeId) -> WorkloadCertificate:
    """A certificate of that identity, as a proxy holds it."""
    leaf = authority.leaf(str(identity))
    chain = [leaf.certificate_pem, *authority.intermediates_pem, authority.root_pem]
    return parse_chain(identity, chain, leaf.key_pem.encode(), check_identity=True)


def answering(application: Handler, headers: Sequence[tuple[bytes, bytes]] = ()) -> Serve:
    """Take every CONNECT and run an application on it."""

    async def serve(engine: Engine, request: TunnelRequest) -> None:
        async with trio.open_nursery() as nursery:
            near, far = socket_pair()
            nursery.start_soon(_run_application, application, far)
            await relay(engine, request.accept(headers), SocketEnd(near), Bytes())

    return serve


def forwarding(host: Host, target: SocketAddress) -> Serve:
    """Carry every CONNECT's bytes to one address, dialled from a host."""

    async def serve(engine: Engine, request: TunnelRequest) -> None:
        try:
            stream = await host.connect(target)
        except OSError:
            request.refuse(REFUSED)
            return
        sock = detached(stream)
        await relay(engine, request.accept([]), SocketEnd(sock), Bytes())

    return serve


@dataclass(slots=True, eq=False)
class HboneServer:
    """Ends HBONE on a host. `connects` tells what came, in order, and `tunnels` on which there were."""

    host: Host
    certificate: WorkloadCertificate
    handler: Serve
    connects: list[Connect] = field(default_factory=list)
    tunnels: list[ServerTunnel] = field(default_factory=list)
    _contexts: TlsContexts = field(default_factory=TlsContexts)
    _engine: Engine = field(default_factory=lambda: Engine(in_front=False))

    async def run(
        self, port: int = HBONE_PORT, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled.

        Raises:
            OSError: the port is taken.
        """
        async with self.host.listen(port) as listener, trio.open_nursery() as nursery:
            await nursery.start(self._engine.run)
            task_status.started()
            await trio.serve_listeners(self._serve, [listener], handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        sock = detached(stream)
        client = peer_address(sock)
        try:
            tls, peer = await accept_tls(sock, self.certificate, contexts=self._contexts)
        except (TlsFailed, OSError):
            return  # the peer's business

        async def serve(request: TunnelRequest) -> None:
            identity = peer.identities[0] if peer.identities else None
            self.connects.append(Connect(request.authority or "", request.headers, identity, client))
            with suppress(OSError, H2Failed, trio.BrokenResourceError):  # the connection's business
                await self.handler(self._engine, request)

        tunnel = ServerTunnel(self._engine, tls, TunnelSettings())
        self.tunnels.append(tunnel)
        await tunnel.run(serve)


@dataclass(slots=True, eq=False)
class Peer:
    """The dialling end of a tunnel, as a test holds it."""

    engine: Engine
    tunnel: ClientTunnel
    nursery: trio.Nursery

    async def connect(
        self, authority: HboneTarget, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> TunnelStream:
        """CONNECT; the answer, whatever its status.

        Raises:
            H2Failed: there is none.
        """
        return await self.tunnel.open(authority, headers)

    def converse(self, stream: TunnelStream) -> trio.SocketStream:
        """An accepted CONNECT as a stream to talk on."""
        near, far = socket_pair()
        self.nursery.start_soon(relay, self.engine, SocketEnd(near), stream, Bytes())
        return trio.SocketStream(trio.socket.from_stdlib_socket(far))


@asynccontextmanager
async def open_tunnel(
    host: Host, target: SocketAddress, certificate: WorkloadCertificate, expected: Sequence[SpiffeId]
) -> AsyncGenerator[Peer, None]:
    """A tunnel dialled from a host, for the body's time; the caller sets the deadline.

    Raises:
        TlsFailed, OSError: it could not be established.
    """
    stream = await host.connect(target)
    sock = detached(stream)
    tls: ssl.SSLSocket
    tls, _ = await connect_tls(sock, certificate, expected, contexts=TlsContexts())
    async with trio.open_nursery() as nursery:
        engine = Engine(in_front=False)
        await nursery.start(engine.run)
        tunnel = ClientTunnel(engine, tls, TunnelSettings())
        await nursery.start(tunnel.run)
        yield Peer(engine, tunnel, nursery)
        nursery.cancel_scope.cancel(reason="the test hangs up")


def detached(stream: trio.SocketStream) -> socket.socket:
    """The stream's connection as a non-blocking stdlib socket, which owns it from here on."""
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on this process's loopback, non-blocking: ends and resets as the kernel's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


async def _run_application(application: Handler, sock: socket.socket) -> None:
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        with suppress(OSError, trio.BrokenResourceError):  # the peer's business
            await application(stream)
