"""The data plane of one workload: its listeners, its connections, its tunnels, in nested nurseries.

    tunnels        the pool's; outlives the connections that use them
    └─ watching    the policies
       └─ ports    15001, 15006, 15008, 15080: a task each; and the name server, which has its own
          └─ connections, in each port: one task each
             └─ accepting

A drain cancels *accepting*, gives *connections* the grace period, and ends with *tunnels*. Cancelling the
scope around `run` ends it all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

import trio

from ztunnel_trio.facts.network import (
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    SOCKS5_PORT,
)
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.ending import Drained, Loss
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.listener import Listener, Serve, accept_into
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.log import Bare, get_logger
from ztunnel_trio.proxy.dialler import Dialler
from ztunnel_trio.proxy.inbound import Inbound
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import NodeParts, ProxySettings
from ztunnel_trio.proxy.outbound import Outbound
from ztunnel_trio.proxy.passthrough import Passthrough
from ztunnel_trio.proxy.pool import Pool
from ztunnel_trio.proxy.reach import Reach
from ztunnel_trio.proxy.registry import Registry
from ztunnel_trio.proxy.routing import Routing
from ztunnel_trio.proxy.serving import Handler, serve_one
from ztunnel_trio.proxy.socks import Socks
from ztunnel_trio.proxy.tunnel.either import Tunnel
from ztunnel_trio.supervise.drain import Drain

drain_log = get_logger("drain")

MOST_WAITING: Final = 4096  # accepted at once when a drain begins; a queue holds 129
PROBED: Final = frozenset({"outbound", "inbound plaintext"})  # HBONE has its own PING
DRAIN_NAMES: Final = {"inbound plaintext": "inbound passthrough"}  # where another than the component's
LOCALHOST: Final = IPv4Address("127.0.0.1")


class NameServer(Protocol):
    """The pod's DNS server, already bound; `dns.server.DnsServer` is one."""

    async def run(self, drain: Drain) -> None:
        """Serve until the drain is over."""
        ...

    async def resolve(self, name: str, ipv6: bool) -> list[IPAddress]:
        """The addresses of a name as this workload sees it, for SOCKS."""
        ...

    def close(self) -> None:
        """Give the ports back without having run."""
        ...


@dataclass(frozen=True, slots=True)
class Port:
    """A port, and what operators call it."""

    component: str
    listener: Listener


MakeNameServer = Callable[[SocketFactory, WorkloadInfo], NameServer]


@dataclass(slots=True, eq=False)
class WorkloadProxy:
    """Binding happens when it is made (`bind`), so that errors surface before anybody is told it runs."""

    node: NodeParts
    info: WorkloadInfo
    sockets: SocketFactory
    registry: Registry = field(default_factory=Registry)
    is_own: bool = False  # the proxy's own inbound listener, for its metrics over HBONE
    name_server: NameServer | None = None
    ports: list[Port] = field(default_factory=list)
    alive: set[Tunnel] = field(default_factory=set)  # every tunnel that runs, in either direction

    def bind(self, make_name_server: MakeNameServer | None) -> None:
        """Bind every port, or none.

        Raises:
            OSError: a port cannot be had; the text names the address.
        """
        settings = self.node.settings
        # Behind the own listener are only our own servers, which need no client's address.
        transparent = False if self.is_own else settings.require_original_source
        try:
            if make_name_server is not None:
                self.name_server = make_name_server(self.sockets, self.info)
            for component, address in wanted_ports(settings, is_own=self.is_own):
                port = Port(component, self.sockets.listen_tcp(address, transparent=transparent))
                self.ports.append(port)
                announce(port)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the ports back, and the sockets made ahead; `run` does so itself."""
        self.sockets.close()
        for port in self.ports:
            port.listener.close()
        if self.name_server is not None:
            self.name_server.close()

    async def run(self, drain: Drain) -> None:
        """Serve until the drain is over. `bind` came before."""
        try:
            async with trio.open_nursery() as tunnels:
                dialler = Dialler(self.node, self.info, self.sockets)
                pool = Pool(tunnels, dialler.tunnel, dialler.watch, self.node.settings.pool, self.alive)
                await self.serve(drain, pool, dialler)
                self.say_goodbye(Drained())
                tunnels.cancel_scope.cancel(reason="every connection has ended")
        finally:
            self.close()

    def say_goodbye(self, how: Loss) -> None:
        """End all tunnels; their peers are told as far as it can be written at once."""
        for tunnel in tuple(self.alive):
            tunnel.end(how)

    async def serve(self, drain: Drain, pool: Pool, dialler: Dialler) -> None:
        """Serve every port until its drain is over."""
        judge = Judge(self.node)
        async with trio.open_nursery() as watching:
            watching.start_soon(self.registry.watch, self.node.live, self.info, judge.allows)
            async with trio.open_nursery() as ports:
                for port in self.ports:
                    handler = self.handler(port, pool, dialler, judge, drain)
                    ports.start_soon(serve_port, self.node.engine, port, handler, drain)
                if self.name_server is not None:
                    ports.start_soon(self.name_server.run, drain)
            watching.cancel_scope.cancel(reason="drained")

    def handler(self, port: Port, pool: Pool, dialler: Dialler, judge: Judge, drain: Drain) -> Handler:
        """Who serves the connections of a port."""
        node, info, sockets, registry = self.node, self.info, self.sockets, self.registry
        component, is_transparent = port.component, port.listener.transparent
        match component:
            case "inbound":
                return Inbound(node, info, sockets, registry, judge, drain, is_transparent, self.alive).serve
            case "inbound plaintext":
                return Passthrough(node, info, sockets, registry, judge, is_transparent).serve
            case _:
                routing = Routing(node, info, sockets)
                outbound = Outbound(node, registry, routing, Reach(node, sockets, pool, dialler))
                if component == "outbound":
                    return outbound.serve
                resolve = None if self.name_server is None else self.name_server.resolve
                return Socks(outbound, resolve).serve


def wanted_ports(settings: ProxySettings, *, is_own: bool) -> list[tuple[str, SocketAddress]]:
    """The ports to open: what operators call each, and where it is."""
    wildcard: IPAddress = IPv6Address("::") if settings.is_ipv6_enabled else IPv4Address("0.0.0.0")
    hbone = ("inbound", SocketAddress(wildcard, settings.hbone_port))
    if is_own:
        return [hbone]
    if not settings.is_on:
        return []
    ports = [
        hbone,
        ("inbound plaintext", SocketAddress(wildcard, INBOUND_PLAINTEXT_PORT)),
        ("outbound", SocketAddress(wildcard, OUTBOUND_PORT)),
    ]
    return [*ports, ("socks5", SocketAddress(LOCALHOST, SOCKS5_PORT))] if settings.socks5 else ports


async def serve_port(engine: Engine, port: Port, handler: Handler, drain: Drain) -> None:
    """Accept until the drain is asked for, then wait for what runs, as long as the grace lasts."""
    serve = partial(serve_one, handler)
    fields = {"component": DRAIN_NAMES.get(port.component, port.component)}
    try:
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                keepalive = port.component in PROBED
                accepting.start_soon(
                    partial(accept_into, engine, port.listener, connections, serve, keepalive=keepalive)
                )
                await drain.requested.wait()
                accepting.cancel_scope.cancel(reason="draining")
            accept_waiting(port.listener, connections, serve)
            port.listener.close()
            connections.cancel_scope.deadline = drain.deadline
        if connections.cancel_scope.cancelled_caught:
            text = "drain duration expired with pending connections, forcefully shutting down"
            drain_log.warning(text, extra={"fields": fields})
    finally:
        drain_log.info("shutdown complete", extra={"fields": fields})


def accept_waiting(listener: Listener, nursery: trio.Nursery, serve: Serve) -> None:
    """Serve whom the kernel has accepted for us already: closing the listener would reset them."""
    for _ in range(MOST_WAITING):
        try:
            accepted = listener.accept_nowait()
        except BlockingIOError:
            return
        except OSError as error:  # that one was gone, or there are no descriptors: they end with the listener
            drain_log.debug("accept: %s", error)
            continue
        nursery.start_soon(serve, accepted.sock, accepted.peer)


def announce(port: Port) -> None:
    """The line operators look for when a port opens."""
    get_logger("proxy::" + port.component.replace(" plaintext", "_passthrough")).info(
        "listener established",
        extra={
            "fields": {
                "address": Bare(str(port.listener.address)),
                "component": port.component,
                "transparent": port.listener.transparent,
            }
        },
    )
