"""One workload's ports over their life: bound together, served, drained, closed."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, until
from tests.fakes.world import SERVER, SOURCE, Lines, World, captured, patient_clock, world
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.facts.network import HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, SOCKS5_PORT
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.ending import Drained
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.proxy.node import ProxySettings
from ztunnel_trio.proxy.workload_proxy import NameServer, WorkloadProxy, wanted_ports
from ztunnel_trio.supervise.drain import Drain

EXPIRED = "drain duration expired with pending connections, forcefully shutting down"
DONE = "shutdown complete"
WITH_SOCKS = ProxySettings(socks5=True)


@dataclass(eq=False)
class FakeNames:
    """A name server that knows what it was given; keeps one query waiting through a drain."""

    known: dict[str, list[IPAddress]] = field(default_factory=dict)
    is_closed: bool = False
    finished_query: bool = False

    async def run(self, drain: Drain) -> None:
        await drain.requested.wait()
        await trio.sleep(1)
        self.finished_query = True

    async def resolve(self, name: str, ipv6: bool) -> list[IPAddress]:
        await trio.lowlevel.checkpoint()
        if name not in self.known:
            raise Unavailable("request timed out")
        return self.known[name]

    def close(self) -> None:
        self.is_closed = True


@dataclass(eq=False)
class Serving:
    """A proxy that runs in a world. `over` is set when `run` has returned."""

    it: World
    proxy: WorkloadProxy
    names: FakeNames
    drained: Lines
    over: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        await self.proxy.run(self.it.drain)
        self.over.set()

    def address(self, port: int) -> SocketAddress:
        home = self.proxy.sockets.home  # type: ignore[attr-defined]
        return SocketAddress(home, self.it.ports[SocketAddress(home, port)])

    async def connect(self, port: int) -> App:
        app = App(await SocketFactory(None, SocketSettings()).connect(self.address(port)))
        self.it.apps.append(app)
        return app

    async def socks(self, target: SocketAddress) -> App:
        """A connection to `target` through port 15080."""
        app = await self.connect(SOCKS5_PORT)
        await app.send(b"\5\1\0")
        assert await app.receive_exactly(2) == b"\5\0"
        await app.send(b"\5\1\0\1" + target.ip.packed + target.port.to_bytes(2, "big"))
        assert await app.receive_exactly(10) == b"\5\0\0\1\0\0\0\0\0\0"
        return app

    def said(self) -> list[tuple[str, str]]:
        return [(line["component"], line["message"]) for line in self.drained.lines]


@asynccontextmanager
async def serving(
    settings: ProxySettings = WITH_SOCKS, workload: Workload = SOURCE, *, grace_seconds: float = 5.0
) -> AsyncIterator[Serving]:
    async with world(settings, grace_seconds=grace_seconds) as it:
        names = FakeNames()

        def make_names(sockets: SocketFactory, info: WorkloadInfo) -> NameServer:
            return names

        proxy = WorkloadProxy(it.node, workload.info, it.sockets(workload.addresses[0]))
        proxy.bind(make_names)
        it.registries[f"proxy of {workload.uid}"] = proxy.registry
        with captured("ztunnel::drain") as lines:
            made = Serving(it, proxy, names, lines)
            it.nursery.start_soon(made.run)
            yield made


@trio_test
async def test_every_port_is_bound_and_announced() -> None:
    async with world(WITH_SOCKS) as it:
        announced = []
        for target in ("inbound", "inbound_passthrough", "outbound", "socks5"):
            with captured(f"ztunnel::proxy::{target}") as lines:
                proxy = WorkloadProxy(it.node, SOURCE.info, it.sockets(SOURCE.addresses[0]))
                proxy.bind(None)
                proxy.close()
            announced += [(line["message"], line["component"]) for line in lines.lines]
        assert announced == [
            ("listener established", component)
            for component in ("inbound", "inbound plaintext", "outbound", "socks5")
        ]
        assert {address.port for address in it.ports} == {
            HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, SOCKS5_PORT,
        }  # fmt: skip


@trio_test
async def test_without_connections_a_drain_ends_at_once() -> None:
    async with serving() as made:
        await wait_all_tasks_blocked()
        made.it.drain.request("SIGTERM")
        await made.over.wait()
        components = ("inbound", "inbound passthrough", "outbound", "socks5")
        assert sorted(made.said()) == sorted((component, DONE) for component in components)


@trio_test(clock=patient_clock())
async def test_open_connections_get_the_grace_and_no_more() -> None:
    async with serving(grace_seconds=7) as made:
        app = await made.socks(await made.it.echo(ip_address("127.0.0.77")))
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"
        asked = trio.current_time()
        made.it.drain.request("SIGTERM")
        await trio.sleep(5)
        await app.send(b"y")
        assert await app.receive_exactly(1) == b"y"
        assert not made.over.is_set()
        with pytest.raises(ConnectionRefusedError):
            await made.connect(SOCKS5_PORT)
        await made.over.wait()

        assert trio.current_time() - asked == pytest.approx(7, abs=0.1)
        assert ("socks5", EXPIRED) in made.said()
        assert [said for said in made.said() if said[1] == EXPIRED] == [("socks5", EXPIRED)]
        assert made.said().index(("socks5", EXPIRED)) < made.said().index(("socks5", DONE))
        assert made.it.lines.errors() == ["connection closed due to connection drain"]
        assert made.it.metric("istio_tcp_connections_failed_total") == 0


@trio_test(clock=patient_clock())
async def test_a_drain_ends_with_the_last_connection() -> None:
    async with serving(grace_seconds=100) as made:
        app = await made.socks(await made.it.echo(ip_address("127.0.0.77")))
        made.it.drain.request("SIGTERM")
        await trio.sleep(20)
        app.end()
        assert await app.receive() == b""
        await made.over.wait()
        assert trio.current_time() < 30
        assert made.it.lines.errors() == [None]


@trio_test
async def test_who_waits_in_the_queue_when_the_drain_comes_is_served() -> None:
    async with serving() as made:
        there = await made.it.echo(ip_address("127.0.0.77"))
        await wait_all_tasks_blocked()
        made.it.drain.request("SIGTERM")  # nobody has run since
        apps = []
        for _ in range(20):
            near = SocketFactory(None, SocketSettings()).tcp(socket.AF_INET)
            near.connect_ex((str(SOURCE.addresses[0]), made.address(SOCKS5_PORT).port))
            apps.append(App(near))
            made.it.apps.append(apps[-1])
        for app in apps:
            await app.send(b"\5\1\0")
            assert await app.receive_exactly(2) == b"\5\0"
            await app.send(b"\5\1\0\1" + there.ip.packed + there.port.to_bytes(2, "big"))
            assert await app.receive_exactly(10) == b"\5\0\0\1\0\0\0\0\0\0"
            app.end()
            assert await app.receive() == b""
        await made.over.wait()
        assert made.it.lines.errors() == [None] * 20


@trio_test(clock=patient_clock())
async def test_the_name_server_finishes_what_it_has() -> None:
    async with serving() as made:
        await wait_all_tasks_blocked()
        made.it.drain.request("SIGTERM")
        await made.over.wait()
        assert made.names.finished_query
        assert made.names.is_closed


@trio_test
async def test_the_end_of_a_pool_is_told_to_its_peers() -> None:
    async with serving() as made:
        server = await made.it.listen(SERVER)
        app = await made.socks(await made.it.echo(SERVER.addresses[0]))
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"
        (tunnel,) = server.alive
        app.end()
        assert await app.receive() == b""
        # A drain would make the server say goodbye as well.
        made.proxy.say_goodbye(Drained())
        await until(lambda: tunnel.ended.is_set())


@trio_test
async def test_a_door_that_fails_fails_the_proxy() -> None:
    async with world() as it:
        proxy = WorkloadProxy(it.node, SOURCE.info, it.sockets(SOURCE.addresses[0]))
        proxy.bind(None)
        proxy.ports[0].listener.close()
        with pytest.RaisesGroup(trio.ClosedResourceError, flatten_subgroups=True):
            await proxy.run(it.drain)
        assert all(port.listener.sock.fileno() < 0 for port in proxy.ports)


def test_a_name_server_that_cannot_be_had_leaves_nothing_bound() -> None:
    @trio_test
    async def main() -> None:
        async with world() as it:
            proxy = WorkloadProxy(it.node, SOURCE.info, it.sockets(SOURCE.addresses[0]))

            def make_names(sockets: SocketFactory, info: WorkloadInfo) -> NameServer:
                raise OSError(errno.EADDRINUSE, "in use")

            with pytest.raises(OSError, match="in use"):
                proxy.bind(make_names)
            assert proxy.ports == []

    main()


def test_a_proxy_cancelled_anywhere_leaves_nothing() -> None:
    async def scenario() -> None:
        async with serving() as made:
            app = await made.socks(await made.it.echo(ip_address("127.0.0.77")))
            await app.send(b"x")
            assert await app.receive_exactly(1) == b"x"
            made.it.drain.request("SIGTERM")
            app.end()
            assert await app.receive() == b""
            await made.over.wait()

    assert cancelled_everywhere_now(scenario, autojump=True) > 30


DATA = [("inbound", "[::]:15008"), ("inbound plaintext", "[::]:15006"), ("outbound", "[::]:15001")]


@pytest.mark.parametrize(
    ("settings", "is_own", "ports"),
    [
        (ProxySettings(), False, DATA),
        (WITH_SOCKS, False, [*DATA, ("socks5", "127.0.0.1:15080")]),
        (ProxySettings(is_ipv6_enabled=False), False, [(name, f"0.0.0.0:{at[-5:]}") for name, at in DATA]),
        (ProxySettings(is_on=False, socks5=True), False, []),
        (WITH_SOCKS, True, DATA[:1]),
        (ProxySettings(is_on=False), True, DATA[:1]),
    ],
)
def test_the_doors_follow_the_settings(
    settings: ProxySettings, is_own: bool, ports: list[tuple[str, str]]
) -> None:
    assert [(name, str(at)) for name, at in wanted_ports(settings, is_own=is_own)] == ports


@trio_test
async def test_a_data_path_that_is_off_binds_nothing() -> None:
    async with world(ProxySettings(is_on=False)) as it:
        proxy = WorkloadProxy(it.node, SERVER.info, it.sockets(SERVER.addresses[0]))
        proxy.bind(None)

        assert not proxy.ports
        assert not it.ports
