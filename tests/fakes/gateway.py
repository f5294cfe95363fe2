"""A gateway to another network on loopback: the lab's HBONE server, found where a `World` dials it."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import trio

from tests.fakes.world import SERVER, World, certificate_of
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab.hbone import HboneServer, Serve, forwarding
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.model.address import IPAddress, NetworkAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import GatewayAddress, Workload
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.memory import MemoryTls
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings

NETWORK = "far"
GATEWAY = replace(
    SERVER, uid="//Pod/ns/gateway", name="gateway", service_account="gateway", network=NETWORK,
    addresses=(ip_address("127.0.0.6"),),
)  # fmt: skip
REMOTE = Service(
    name="remote", namespace="ns", hostname="remote.ns.svc.cluster.local",
    vips=(NetworkAddress("", ip_address("127.10.0.9")),), ports={80: 80},
    subject_alt_names=(str(SERVER.identity),),
)  # fmt: skip


class Loopback(Host):
    """One loopback address of this machine instead of a namespace; `bound` is where it listened last."""

    def __init__(self, ip: IPAddress | None = None) -> None:
        self.here = ip or ip_address("127.0.0.1")

    def listen(self, port: int, **_: object) -> trio.SocketListener:
        sock = socket.create_server((str(self.here), port))
        self.bound = SocketAddress(self.here, sock.getsockname()[1])
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    async def connect(self, address: SocketAddress, **_: object) -> trio.SocketStream:
        return await trio.open_tcp_stream(str(address.ip), address.port)


def far_away(number: int = 1, gateway: Workload = GATEWAY) -> Workload:
    """An endpoint of REMOTE behind a gateway: what is there is known by no address."""
    return replace(
        SERVER,
        uid=f"far//Pod/ns/far-{number}",
        name=f"far-{number}",
        network=NETWORK,
        addresses=(),
        network_gateway=GatewayAddress(NetworkAddress(NETWORK, gateway.addresses[0]), HBONE_PORT),
        services={REMOTE.key: {80: 80}},
    )


async def open_gateway(
    it: World, serve: Serve, gateway: Workload = GATEWAY, *, identity: SpiffeId | None = None
) -> HboneServer:
    """Take HBONE for the gateway from now on, showing its identity or another."""
    host = Loopback(gateway.addresses[0])
    server = HboneServer(host, certificate_of(identity or gateway.identity), serve)
    await it.nursery.start(server.run, 0)
    it.ports[SocketAddress(host.here, HBONE_PORT)] = host.bound.port
    return server


def to_proxy_of(it: World, workload: Workload = SERVER) -> Serve:
    """Carry what is inside on to a proxy that listens in the world."""
    there = SocketAddress(workload.addresses[0], HBONE_PORT)
    return forwarding(Loopback(), replace(there, port=it.ports[there]))


def ending_inner(serve: Callable[[TunnelRequest], Awaitable[None]], identity: SpiffeId) -> Serve:
    """End the inner tunnel here, under an identity; each CONNECT in it is for `serve`."""

    async def take(engine: Engine, request: TunnelRequest) -> None:
        context = TlsContexts().server_context(certificate_of(identity))
        inner = MemoryTls(engine, request.accept([]), context, server_side=True)
        try:
            await inner.handshake()
        except BaseException as error:
            inner.stop()
            with suppress(ssl.SSLError, OSError):  # the peer's business
                raise error
            return
        await ServerTunnel(engine, inner, TunnelSettings()).run(partial(serve))

    return take
