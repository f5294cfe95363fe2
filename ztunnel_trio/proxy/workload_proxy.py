"""The data plane of one workload: its listeners, its connections, its tunnels, in nested nurseries.

    tunnels        the pool's; outlives the connections that use them
    └─ connections one task each, and the watch over policies
       └─ accepting 15001, 15006, 15008, 15080, 15053

A drain cancels *accepting*, gives *connections* the grace period, and ends with *tunnels*. Cancelling the
scope around `run` ends it all at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

import trio

from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.listener import Listener, accept_into
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.log import Bare, get_logger
from ztunnel_trio.proxy.dialler import Dialler
from ztunnel_trio.proxy.inbound import Inbound
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import Node
from ztunnel_trio.proxy.outbound import Outbound
from ztunnel_trio.proxy.passthrough import Passthrough
from ztunnel_trio.proxy.pool import Pool
from ztunnel_trio.proxy.registry import Registry
from ztunnel_trio.proxy.serving import Handler, serve_one
from ztunnel_trio.proxy.socks import Socks
from ztunnel_trio.spec.network import (
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    SOCKS5_PORT,
)
from ztunnel_trio.supervise.drain import Drain

drain_log = get_logger("drain")

PROBED: Final = frozenset({"outbound", "inbound plaintext"})  # HBONE has its own PING
LOCALHOST: Final = IPv4Address("127.0.0.1")


class NameServer(Protocol):
    """The pod's DNS server, already bound; `dns.server.DnsServer` is one."""

    async def run(self, drain: Drain, *, task_status: trio.TaskStatus[None]) -> None: ...

    async def resolve(self, name: str, ipv6: bool) -> list[IPAddress]:
        """The addresses of a name as this workload sees it, for SOCKS."""
        ...

    def close(self) -> None:
        """Give the ports back without having run."""
        ...


MakeNameServer = Callable[[SocketFactory, WorkloadInfo], NameServer]


@dataclass(slots=True, eq=False)
class WorkloadProxy:
    """Binding happens when it is made (`bind`), so that errors surface before anybody is told it runs."""

    node: Node
    info: WorkloadInfo
    sockets: SocketFactory
    registry: Registry = field(default_factory=Registry)
    is_own: bool = False  # the proxy's own inbound listener, for its metrics over HBONE
    name_server: NameServer | None = None
    doors: list[tuple[str, Listener]] = field(default_factory=list)

    def bind(self, make_name_server: MakeNameServer | None) -> None:
        """Bind every port, or none.

        Raises:
            OSError: a port cannot be had; the text names the address.
        """
        settings = self.node.settings
        wildcard: IPAddress = IPv6Address("::") if settings.is_ipv6_enabled else IPv4Address("0.0.0.0")
        wanted = [("inbound", SocketAddress(wildcard, settings.hbone_port))]
        if not self.is_own:
            wanted.append(("inbound plaintext", SocketAddress(wildcard, INBOUND_PLAINTEXT_PORT)))
            wanted.append(("outbound", SocketAddress(wildcard, OUTBOUND_PORT)))
        if settings.socks5 and not self.is_own:
            wanted.append(("socks5", SocketAddress(LOCALHOST, SOCKS5_PORT)))
        try:
            if make_name_server is not None:
                self.name_server = make_name_server(self.sockets, self.info)
            for component, address in wanted:
                listener = self.sockets.listen_tcp(address, transparent=settings.require_original_source)
                self.doors.append((component, listener))
                announce(component, listener)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the ports back; `run` does so itself."""
        for _, listener in self.doors:
            listener.close()
        if self.name_server is not None:
            self.name_server.close()

    async def run(
        self, drain: Drain, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the drain is over. `bind` came before."""
        try:
            async with trio.open_nursery() as tunnels:
                dialler = Dialler(self.node, self.info, self.sockets)
                pool = Pool(tunnels, dialler.tunnel, dialler.watch, self.node.settings.pool)
                await self.serve(drain, pool, dialler, task_status)
                tunnels.cancel_scope.cancel(reason="every connection has ended")
        finally:
            self.close()

    async def serve(
        self, drain: Drain, pool: Pool, dialler: Dialler, task_status: trio.TaskStatus[None]
    ) -> None:
        """Accept until the drain is asked for, then wait for what runs, as long as the grace lasts."""
        judge = Judge(self.node)
        async with trio.open_nursery() as watching:
            watching.start_soon(self.registry.watch, self.node.live, self.info, judge.allows)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for component, listener in self.doors:
                        handler = self.handler(component, listener, pool, dialler, judge, drain)
                        accepting.start_soon(
                            partial(
                                accept_into,
                                listener,
                                connections,
                                partial(serve_one, handler),
                                keepalive=component in PROBED,
                            )
                        )
                    if self.name_server is not None:
                        await accepting.start(self.name_server.run, drain)
                    task_status.started()
                    await drain.requested.wait()
                    accepting.cancel_scope.cancel(reason="draining")
                self.close()
                connections.cancel_scope.deadline = drain.deadline
            if connections.cancel_scope.cancelled_caught:
                drain_log.warning("drain duration expired with pending connections, forcefully shutting down")
            watching.cancel_scope.cancel(reason="drained")

    def handler(
        self,
        component: str,
        listener: Listener,
        pool: Pool,
        dialler: Dialler,
        judge: Judge,
        drain: Drain,
    ) -> Handler:
        """Who serves the connections of a port."""
        node, info, sockets, registry = self.node, self.info, self.sockets, self.registry
        match component:
            case "inbound":
                is_transparent = listener.transparent and not self.is_own
                return Inbound(node, info, sockets, registry, judge, drain, is_transparent).serve
            case "inbound plaintext":
                return Passthrough(node, info, sockets, registry, judge, listener.transparent).serve
            case _:
                outbound = Outbound(node, info, sockets, registry, pool, dialler)
                if component == "outbound":
                    return outbound.serve
                resolve = None if self.name_server is None else self.name_server.resolve
                return Socks(outbound, resolve).serve


def announce(component: str, listener: Listener) -> None:
    """The line operators look for when a port opens."""
    get_logger("proxy::" + component.replace(" plaintext", "_passthrough")).info(
        "listener established",
        extra={
            "fields": {
                "address": Bare(str(listener.address)),
                "component": component,
                "transparent": listener.transparent,
            }
        },
    )
