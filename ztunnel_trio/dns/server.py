"""The DNS server of one workload: UDP and TCP on port 15053 of its pod.

A question of the mesh is answered on the spot, without a task; everything else becomes a task that asks the
resolver upstream (`dns.answers`). What one pod's questions may take of the loop is its share (`dns.share`).

A drain closes the ports at once; queries in flight and the message a TCP client is in the middle of get the
grace period.
"""

import logging
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Final, Self

import trio

from ztunnel_trio.dns.answers import NameAnswers
from ztunnel_trio.dns.forward import Budget, Forwarder
from ztunnel_trio.dns.settings import DnsMetrics, DnsSettings
from ztunnel_trio.dns.share import PART_OF_ALL_PODS, LoopAllowance, Share
from ztunnel_trio.dns.tcp import TcpConnections
from ztunnel_trio.dns.udp import UdpPort
from ztunnel_trio.facts.network import DNS_PORT
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.net.listener import Listener
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.log import span
from ztunnel_trio.supervise.drain import Drain

log = logging.getLogger("ztunnel::dns::server")

LOCALHOSTS: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


@dataclass(frozen=True, slots=True)
class LoopbackPort:
    """The default address: 127.0.0.1 and, where the pod has IPv6, ::1."""

    port: int = DNS_PORT


@dataclass(frozen=True, slots=True)
class DnsSockets:
    """The bound sockets of one server; owned by whoever runs it, until then by who bound them."""

    udp: tuple[socket.socket, ...]
    tcp: tuple[Listener, ...]

    def close(self) -> None:
        """Close them all. Closing twice changes nothing."""
        for sock in self.udp:
            sock.close()
        for listener in self.tcp:
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bind(factory: SocketFactory, address: LoopbackPort | SocketAddress, *, ipv6: bool) -> DnsSockets:
    """Bind UDP and TCP inside the pod. `ipv6` is the process's switch; the pod's loopback may lack it too.

    Raises:
        BindFailed: an address is taken; nothing stays bound.
    """
    if isinstance(address, SocketAddress):
        addresses = [address]
    else:
        families = 2 if ipv6 and factory.has_ipv6_loopback() else 1
        addresses = [SocketAddress(ip, address.port) for ip in LOCALHOSTS[:families]]
    with ExitStack() as undo:
        udp, tcp = [], []
        for one in addresses:
            udp.append(factory.listen_udp(one))
            undo.callback(udp[-1].close)
            tcp.append(factory.listen_tcp(one))
            undo.callback(tcp[-1].close)
        undo.pop_all()
    return DnsSockets(tuple(udp), tuple(tcp))


class DnsServer:
    """Answers one workload's questions. Owns its sockets from construction, closes them when `run` ends."""

    def __init__(
        self,
        *,
        sockets: DnsSockets,
        live: LiveMesh,
        client: WorkloadInfo,
        forwarder: Forwarder,
        settings: DnsSettings,
        metrics: DnsMetrics,
        rng: Random,
        budget: Budget | None = None,
        share: Share | None = None,
    ) -> None:
        """`budget`: the process's queries in flight, of which this server may use `settings.in_flight`.
        `share`: what its questions may take of the loop."""
        self._sockets = sockets
        self._info = client
        self._metrics = metrics
        self._share = share or Share(LoopAllowance(PART_OF_ALL_PODS))
        self._answers = NameAnswers(
            live=live,
            client=client,
            forwarder=forwarder,
            settings=settings,
            metrics=metrics,
            rng=rng,
            budget=Budget(settings.in_flight, budget),
        )
        self._connections = TcpConnections(self._answers, self._share, settings)

    async def run(
        self, drain: Drain, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until drained or cancelled."""
        with self._sockets, span("dns_proxy", wl=f"{self._info.namespace}/{self._info.name}"):
            async with trio.open_nursery() as in_flight:
                await self._accept(drain, in_flight, task_status)
                in_flight.cancel_scope.deadline = drain.deadline
                self._connections.end_idle()
            log.info("dns server drained")

    def close(self) -> None:
        """Give the sockets back without having run."""
        self._sockets.close()

    async def resolve(self, name: str, ipv6: bool) -> list[IPAddress]:
        """The addresses of a name as this workload would be told them, none if there are none."""
        return await self._answers.resolve(name, ipv6)

    async def _accept(
        self, drain: Drain, in_flight: trio.Nursery, task_status: trio.TaskStatus[None]
    ) -> None:
        """Take what comes, until the drain; then nothing more."""

        async with trio.open_nursery() as accepting:
            for sock in self._sockets.udp:
                port = UdpPort(sock, self._answers, self._share, self._metrics, in_flight)
                accepting.start_soon(port.serve)
            for listener in self._sockets.tcp:
                accepting.start_soon(self._accept_tcp, listener, in_flight, drain)
            addresses = ", ".join(str(listener.address) for listener in self._sockets.tcp)
            log.info(
                "starting local DNS server", extra={"fields": {"address": addresses, "component": "dns"}}
            )
            task_status.started()
            await drain.requested.wait()
            log.info("shutting down the DNS server")
            accepting.cancel_scope.cancel(reason="draining")

    async def _accept_tcp(self, listener: Listener, in_flight: trio.Nursery, drain: Drain) -> None:
        while True:
            accepted = await listener.accept()
            in_flight.start_soon(self._connections.serve, accepted.sock, drain)
