"""A mesh of a few workloads on loopback addresses, in one process: all a proxy needs, and its peers."""

import logging
import math
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from ipaddress import ip_address

import trio
import trio.testing

from tests.fakes.pki import FAR_AWAY, LONG_AGO, Authority
from tests.fakes.tunnels import App, tcp_pair
from ztunnel_trio.decide.known import HostAnswer
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.entries import PolicyEntry, ServiceEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate, parse_chain
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.policy import Action, Authorization, Match, PolicyScope
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import InboundProtocol, Workload
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.listener import Listener, Serve
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.observe.access.record import AccessLog
from ztunnel_trio.observe.metrics import Metrics
from ztunnel_trio.proxy.dialler import Dialler
from ztunnel_trio.proxy.inbound import Inbound
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.node import NodeParts, ProxySettings
from ztunnel_trio.proxy.outbound import Call, Outbound
from ztunnel_trio.proxy.passthrough import Passthrough
from ztunnel_trio.proxy.pool import Pool
from ztunnel_trio.proxy.pool_choice import PoolSettings
from ztunnel_trio.proxy.reach import Reach
from ztunnel_trio.proxy.registry import Registry
from ztunnel_trio.proxy.routing import Routing
from ztunnel_trio.proxy.serving import serve_one
from ztunnel_trio.supervise.drain import Drain

SOURCE = Workload(
    uid="//Pod/ns/source", name="source", namespace="ns", service_account="source",
    workload_name="source", addresses=(ip_address("127.0.0.2"),), node="here",
)  # fmt: skip
SERVER = Workload(
    uid="//Pod/ns/server", name="server", namespace="ns", service_account="server",
    workload_name="server", addresses=(ip_address("127.0.0.3"),), node="here",
    protocol=InboundProtocol.HBONE,
)  # fmt: skip
PLAIN = Workload(
    uid="//Pod/ns/plain", name="plain", namespace="ns", service_account="plain",
    workload_name="plain", addresses=(ip_address("127.0.0.4"),), node="here",
)  # fmt: skip


def patient_clock() -> trio.testing.MockClock:
    """Jumps when nothing has moved for a while: what is in the kernel's hands counts as moving."""
    return trio.testing.MockClock(autojump_threshold=0.02)


def at(text: str) -> SocketAddress:
    return SocketAddress.parse(text)


def deny_all(name: str = "deny-all", *, scope: PolicyScope = PolicyScope.NAMESPACE) -> Authorization:
    """A policy that denies every connection to workloads of its namespace."""
    return Authorization(
        name=name,
        namespace="ns",
        scope=scope,
        action=Action.DENY,
        rules=(((Match(not_destination_ports=(1,)),),),),
    )


@cache
def authority() -> Authority:
    return Authority.root("cluster.local")


@cache
def certificate_of(identity: SpiffeId) -> WorkloadCertificate:
    """An identity's certificate by the one authority of these tests."""
    leaf, key = authority().leaf(identity, LONG_AGO, FAR_AWAY)
    return parse_chain(identity, [leaf, authority().pem], key, check_identity=True)


@dataclass(eq=False)
class FakeCertificates:
    """Has a certificate for everybody, but for the identities in `missing`."""

    missing: set[SpiffeId] = field(default_factory=set)
    late: set[SpiffeId] = field(default_factory=set)  # never fetched
    forgotten: int = 0

    def forget(self) -> None:
        self.forgotten += 1

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        await trio.lowlevel.checkpoint()
        if identity in self.late:
            await trio.sleep_forever()
        if identity in self.missing:
            raise Unavailable(f"no certificate for {identity}")
        return certificate_of(identity)


@dataclass(slots=True, eq=False)
class LoopbackSockets(SocketFactory):
    """Listens on free ports of one loopback address in place of the fixed ones; dials those of others.

    `ports` maps (address, port asked for) to the port it is found under, of all factories of a world.
    """

    home: IPAddress = field(default=ip_address("127.0.0.1"))
    ports: dict[SocketAddress, int] = field(default_factory=dict)
    silent: set[IPAddress] = field(default_factory=set)  # nothing ever comes back from there
    slow: dict[IPAddress, float] = field(default_factory=dict)  # seconds a dial takes
    dialled: list[SocketAddress] = field(default_factory=list)
    waiting: dict[int, SocketAddress] = field(default_factory=dict)  # by descriptor

    # Not super(): a slotted dataclass is another class than the one being defined here.

    def listen_tcp(
        self, address: SocketAddress, *, transparent: bool | None = False, keepalive: bool = False
    ) -> Listener:
        listener = SocketFactory.listen_tcp(self, SocketAddress(self.home, 0), keepalive=keepalive)
        self.ports[SocketAddress(self.home, address.port)] = listener.address.port
        return listener

    def connect_nowait(
        self, destination: SocketAddress, source: IPAddress | None = None
    ) -> tuple[socket.socket, bool]:
        self.dialled.append(destination)
        there = SocketAddress(destination.ip, self.ports.get(destination, destination.port))
        if there.ip in self.silent or there.ip in self.slow:
            sock = self.tcp(socket.AF_INET)
            self.waiting[sock.fileno()] = there
            return sock, False
        return SocketFactory.connect_nowait(self, there, source)

    async def finish_connecting(self, sock: socket.socket) -> None:
        there = self.waiting.pop(sock.fileno(), None)
        if there is not None:
            try:
                await trio.sleep(math.inf if there.ip in self.silent else self.slow[there.ip])
            except BaseException:
                sock.close()
                raise
            sock.connect_ex((str(there.ip), there.port))
        await SocketFactory.finish_connecting(self, sock)


class Lines(logging.Handler):
    """The lines of the access log: level, message and fields as text."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = getattr(record, "fields", {})
        texts = {key: str(value) for key, value in fields.items()}
        self.lines.append({"level": record.levelname, "message": record.getMessage(), **texts})

    @property
    def complete(self) -> list[dict[str, str]]:
        """One a connection: complete, or failed before it had a record."""
        return [line for line in self.lines if line["message"] != "connection opened"]

    def errors(self, direction: str | None = None) -> list[str | None]:
        """The errors of the connections that ended, in order; None for success."""
        return [
            line.get("error") for line in self.complete if direction in (None, line["direction"].strip('"'))
        ]


@contextmanager
def captured(target: str = "access") -> Iterator[Lines]:
    """What a logger says during the body, at its lowest level."""
    logger, lines = logging.getLogger(target), Lines()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = propagate


@dataclass(eq=False)
class World:
    """Workloads, their proxies and applications, as a test asks for them. Tasks live in `nursery`."""

    nursery: trio.Nursery
    node: NodeParts
    certificates: FakeCertificates
    lines: Lines
    drain: Drain
    ports: dict[SocketAddress, int] = field(default_factory=dict)
    silent: set[IPAddress] = field(default_factory=set)
    slow: dict[IPAddress, float] = field(default_factory=dict)
    registries: dict[str, Registry] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    hosts: dict[str, HostAnswer] = field(default_factory=dict)
    apps: list[App] = field(default_factory=list)

    def put(
        self,
        *values: Workload | Service | Authorization,
        gone: tuple[str, ...] = (),
        no_more: tuple[str, ...] = (),
    ) -> None:
        """Change the mesh in one step: what comes; the names of addresses and of policies that go."""
        addresses = [
            workload_entry(value) if isinstance(value, Workload) else ServiceEntry(value)
            for value in values
            if not isinstance(value, Authorization)
        ]
        policies = [PolicyEntry(value.key, value) for value in values if isinstance(value, Authorization)]
        self.node.live.apply(
            Batch(
                addresses=addresses,
                policies=policies,
                removed_addresses=gone,
                removed_policies=no_more,
            )
        )

    def sockets(self, home: IPAddress, netns: Netns | None = None) -> LoopbackSockets:
        return LoopbackSockets(
            netns, SocketSettings(reuse_port=False), home, self.ports, self.silent, self.slow
        )

    def registry(self, workload: Workload) -> Registry:
        """The registry of a workload's proxy."""
        return self.registries.setdefault(workload.uid, Registry())

    def inbound(self, workload: Workload) -> Inbound:
        """What serves a workload's HBONE port."""
        return Inbound(
            self.node,
            workload.info,
            self.sockets(workload.addresses[0]),
            self.registry(workload),
            Judge(self.node),
            self.drain,
            is_transparent=False,
            alive=set(),
        )

    def passthrough(self, workload: Workload) -> Passthrough:
        return Passthrough(
            self.node,
            workload.info,
            self.sockets(workload.addresses[0]),
            self.registry(workload),
            Judge(self.node),
            is_transparent=False,
        )

    def outbound(self, workload: Workload, nursery: trio.Nursery | None = None) -> Outbound:
        """What serves a workload's captured connections; its pool's tunnels live in the nursery."""
        sockets = self.sockets(workload.addresses[0])
        dialler = Dialler(self.node, workload.info, sockets)
        pool = Pool(nursery or self.nursery, dialler.tunnel, dialler.watch, self.node.settings.pool)
        routing = Routing(self.node, workload.info, sockets)
        reach = Reach(self.node, sockets, pool, dialler)
        return Outbound(self.node, self.registry(workload), routing, reach)

    async def listen(self, workload: Workload) -> Inbound:
        """Take HBONE for a workload from now on, under port 15008 of its address."""
        inbound = self.inbound(workload)
        listener = inbound.sockets.listen_tcp(SocketAddress(workload.addresses[0], HBONE_PORT))
        await self.nursery.start(self._accept, listener, partial(serve_one, inbound.serve))
        return inbound

    async def echo(self, address: IPAddress) -> SocketAddress:
        """An application that sends back what it gets; its address."""
        listener = SocketFactory(None, SocketSettings()).listen_tcp(SocketAddress(address, 0))

        async def serve(sock: socket.socket, peer: SocketAddress) -> None:
            with sock:
                app = App(sock)
                try:
                    while data := await app.receive():
                        await app.send(data)
                except OSError:
                    pass

        await self.nursery.start(self._accept, listener, serve)
        return listener.address

    @staticmethod
    async def _accept(listener: Listener, serve: Serve, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as connections:
                task_status.started()
                while True:
                    accepted = await listener.accept()
                    connections.start_soon(serve, accepted.sock, accepted.peer)
        finally:
            listener.close()

    def call(self, outbound: Outbound, target: SocketAddress, client: str = "127.0.0.2:40000") -> App:
        """An application's connection to `target`, captured and carried by a task of its own."""
        near, far = tcp_pair()
        self.nursery.start_soon(self.carry, outbound, far, target, at(client))
        app = App(near)
        self.apps.append(app)
        return app

    async def carry(
        self, outbound: Outbound, sock: socket.socket, target: SocketAddress, client: SocketAddress
    ) -> None:
        """Carry one captured connection."""

        async def handler(sock: socket.socket, peer: SocketAddress) -> None:
            with self.node.access.connection(peer, target, Direction.OUTBOUND) as record:
                call = Call(peer, target, self.node.new_trace())
                entry, pair = await outbound.establish(sock, call, record)
                await outbound.carry(entry, pair, record)

        await serve_one(handler, sock, client)

    def metric(self, name: str) -> int:
        """The sum of a family's samples."""
        lines = self.node.metrics.render().decode().splitlines()
        values = [line.rpartition(" ")[2] for line in lines if line.startswith((name + "{", name + " "))]
        return round(sum(map(float, values)))


@asynccontextmanager
async def world(settings: ProxySettings | None = None, *, grace_seconds: float = 5.0) -> AsyncIterator[World]:
    """SOURCE and SERVER and PLAIN in a mesh; all that runs is cancelled at the end of the block.

    Whatever ended how: nothing stays registered, no gauge is up, every record opened was closed once.
    """
    hosts: dict[str, HostAnswer] = {}
    asked: list[str] = []

    async def resolve(hostname: str) -> HostAnswer:
        await trio.lowlevel.checkpoint()
        return hosts.get(hostname)

    async def demand(name: str) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(name)

    with captured() as lines:
        async with trio.open_nursery() as services:
            engine = Engine(in_front=False)  # a fake clock would not wait for the driver in front
            await services.start(engine.run)
            metrics = Metrics(version="test", shared=True, dns=False, clock=lambda: 0.0)  # nothing expires
            certificates = FakeCertificates()
            node = NodeParts(
                settings=settings or ProxySettings(),
                live=LiveMesh(Mesh(local_node="here")),
                certificates=certificates,
                contexts=TlsContexts(),
                engine=engine,
                access=AccessLog(metrics, clock=trio.current_time),
                metrics=metrics,
                revocations=None,
                resolve=resolve,
                demand=demand,
                rng=random.Random(1),
            )
            async with trio.open_nursery() as nursery:
                made = World(
                    nursery, node, certificates, lines, Drain(grace_seconds), asked=asked, hosts=hosts
                )
                made.put(SOURCE, SERVER, PLAIN)
                try:
                    yield made
                finally:
                    for app in made.apps:
                        app.close()
                    nursery.cancel_scope.cancel(reason="the test is over")
            assert engine.registered == 0
            services.cancel_scope.cancel(reason="the test is over")
        assert metrics.sockets_open("source").count == 0
        assert metrics.sockets_open("destination").count == 0
        assert all(not registry.inbound and not registry.outbound for registry in made.registries.values())
        assert made.metric("istio_tcp_connections_opened_total") == made.metric(
            "istio_tcp_connections_closed_total"
        )


def with_pool(**changes: float) -> ProxySettings:
    """Settings with other limits of the pool."""
    return ProxySettings(pool=replace(PoolSettings(), **changes))  # type: ignore[arg-type]
