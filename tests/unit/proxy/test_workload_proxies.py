"""Pods moving in and out."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import until
from tests.fakes.world import SERVER, SOURCE, LoopbackSockets, World, captured, patient_clock, world
from ztunnel_trio.facts.network import HBONE_PORT, OUTBOUND_PORT
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.sockets import BindFailed, SocketFactory, SocketSettings
from ztunnel_trio.proxy.workload_proxies import Placement, PlacementState, ProxyNotStarted, WorkloadProxies
from ztunnel_trio.supervise.readiness import Readiness

UID = "pod-1"


@dataclass(eq=False)
class Hosted:
    """Workload proxies in a world; `taken` are the homes where no port is to be had."""

    it: World
    workload_proxies: WorkloadProxies
    taken: set[str] = field(default_factory=set)

    def make_sockets(self, placement: Placement) -> SocketFactory:
        if placement.info.name in self.taken:
            raise BindFailed(
                SocketAddress(SERVER.addresses[0], HBONE_PORT), OSError(errno.EADDRINUSE, "in use")
            )
        home = {SERVER.name: SERVER, SOURCE.name: SOURCE}.get(placement.info.name, SERVER).addresses[0]
        return self.it.sockets(home)

    def port(self, workload: Workload, port: int) -> SocketAddress:
        """Where a workload's port really is."""
        address = SocketAddress(workload.addresses[0], port)
        return SocketAddress(address.ip, self.it.ports[address])

    def numbers(self) -> tuple[int, int, int, int]:
        """Active, pending, started, stopped."""
        names = (
            "active_proxy_count",
            "pending_proxy_count",
            "proxies_started_total",
            "proxies_stopped_total",
        )
        active, pending, started, stopped = (self.it.metric(f"workload_manager_{name}") for name in names)
        return active, pending, started, stopped


@asynccontextmanager
async def hosted(grace_seconds: float = 5.0) -> AsyncIterator[Hosted]:
    async with world(grace_seconds=grace_seconds) as it, trio.open_nursery() as proxies:
        workload_proxies = WorkloadProxies(
            it.node,
            proxies,
            it.drain,
            lambda placement: made.make_sockets(placement),
            None,
            lambda _: it.certificates,
        )
        workload_proxies.gate = Readiness().gate("proxy")
        workload_proxies.gate.open()
        made = Hosted(it, workload_proxies)
        yield made
        proxies.cancel_scope.cancel(reason="the test is over")


async def can_connect(address: SocketAddress) -> bool:
    try:
        (await SocketFactory(None, SocketSettings()).connect(address)).close()
    except ConnectionRefusedError:
        return False
    return True


async def end(made: Hosted, uid: str = UID) -> None:
    made.workload_proxies.end(uid)
    await made.workload_proxies.wait_gone(uid)


def is_ready(made: Hosted) -> bool:
    assert made.workload_proxies.gate is not None
    return made.workload_proxies.gate.is_open


def is_open(netns: Netns) -> bool:
    return netns._fd >= 0


@trio_test
async def test_a_pod_moves_in_and_out() -> None:
    async with hosted() as made:
        netns = Netns.own()
        with captured("ztunnel::proxy::inbound") as lines:
            await made.workload_proxies.start(UID, SERVER.info, netns)
        assert [line["message"] for line in lines.lines] == ["listener established"]
        port = made.port(SERVER, HBONE_PORT)
        assert await can_connect(port)
        placement = made.workload_proxies.states()[UID]
        assert isinstance(placement, Placement)
        assert placement.state is PlacementState.UP
        await until(lambda: made.numbers() == (1, 0, 1, 0))

        with captured("ztunnel::drain") as lines:
            await end(made)
        assert {line["component"] for line in lines.lines} == {"inbound", "inbound passthrough", "outbound"}
        assert {line["message"] for line in lines.lines} == {"shutdown complete"}
        assert not await can_connect(port)
        assert made.workload_proxies.states() == {}
        assert made.it.certificates.forgotten == 1
        assert not is_open(netns)
        assert made.numbers() == (0, 0, 1, 1)


@trio_test
async def test_a_port_that_is_taken_leaves_the_pod_pending() -> None:
    async with hosted() as made:
        netns = Netns.own()
        made.taken.add(SERVER.name)
        with pytest.raises(ProxyNotStarted, match=r"failed to bind to address 127\.0\.0\.3:15008: in use"):
            await made.workload_proxies.start(UID, SERVER.info, netns)
        assert is_open(netns)
        assert made.workload_proxies.states() == {UID: SERVER.info}
        assert made.numbers() == (0, 1, 0, 0)

        made.taken.clear()
        await made.workload_proxies.start(UID, SERVER.info, netns)
        await until(lambda: made.numbers() == (1, 0, 1, 0))


@trio_test
async def test_a_pending_pod_and_an_unknown_one_can_be_stopped() -> None:
    async with hosted() as made:
        made.taken.add(SERVER.name)
        with closing(Netns.own()) as netns, pytest.raises(ProxyNotStarted):
            await made.workload_proxies.start(UID, SERVER.info, netns)
        await end(made)
        await end(made, "never heard of")
        assert made.workload_proxies.states() == {}
        assert made.numbers() == (0, 0, 0, 0)


@trio_test
async def test_a_port_that_is_taken_frees_the_others() -> None:
    async with hosted() as made:
        sockets = made.it.sockets(SERVER.addresses[0])
        bound: list[SocketAddress] = []

        @dataclass(slots=True, eq=False)
        class Scarce(LoopbackSockets):
            def listen_tcp(self, address, **how):  # type: ignore[no-untyped-def]
                if address.port == OUTBOUND_PORT:
                    raise BindFailed(address, OSError(errno.EADDRINUSE, "in use"))
                listener = LoopbackSockets.listen_tcp(self, address, **how)
                bound.append(listener.address)
                return listener

        made.workload_proxies.make_sockets = lambda placement: Scarce(None, sockets.settings, sockets.home)
        with closing(Netns.own()) as netns, pytest.raises(ProxyNotStarted):
            await made.workload_proxies.start(UID, SERVER.info, netns)
        assert len(bound) == 2
        assert [await can_connect(address) for address in bound] == [False, False]


@trio_test(clock=patient_clock())
async def test_a_proxy_that_fails_is_started_again_and_readiness_closed_meanwhile() -> None:
    async with hosted() as made:
        await made.workload_proxies.start(UID, SERVER.info, Netns.own())
        await trio.testing.wait_all_tasks_blocked()
        placement = made.workload_proxies.placements[UID]
        with captured("ztunnel::inpod::statemanager") as lines:
            assert placement.proxy is not None
            placement.proxy.ports[0].listener.close()
            await trio.sleep(0.5)
            assert placement.has_failed
            assert not is_ready(made)
            assert made.numbers()[:2] == (0, 1)
            made.taken.add(SERVER.name)
            await trio.sleep(1)
            made.taken.clear()
            await trio.sleep(2.5)
        assert placement.state is PlacementState.UP
        assert is_ready(made)
        assert await can_connect(made.port(SERVER, HBONE_PORT))
        crashed, unable = (str(line["message"]) for line in lines.lines)
        assert crashed.startswith("proxy of server.ns (server) failed, starting it again in ")
        assert unable.startswith("proxy of server.ns (server) cannot start again: Address already in use (")
        made.workload_proxies.placements[UID].scope.cancel()
        await placement.gone.wait()


@trio_test(clock=patient_clock())
async def test_a_failed_proxy_that_is_stopped_opens_readiness() -> None:
    async with hosted() as made:
        await made.workload_proxies.start(UID, SERVER.info, Netns.own())
        await trio.testing.wait_all_tasks_blocked()
        made.workload_proxies.placements[UID].proxy.ports[0].listener.close()  # type: ignore[union-attr]
        await trio.sleep(0.5)
        assert not is_ready(made)
        await end(made)
        assert is_ready(made)


@trio_test
async def test_a_workload_served_here_begins_when_it_is_told() -> None:
    async with hosted() as made:
        begin = trio.Event()
        await made.workload_proxies.start_here("dedicated", SOURCE.info, begin=begin)
        assert made.workload_proxies.placements["dedicated"].state is PlacementState.PENDING
        assert await can_connect(made.port(SOURCE, HBONE_PORT))  # waits in the queue
        assert made.workload_proxies.pods() == {}
        begin.set()
        await until(lambda: made.workload_proxies.placements["dedicated"].state is PlacementState.UP)
        assert made.numbers() == (0, 0, 0, 0)


@trio_test
async def test_a_drain_that_comes_before_the_beginning_ends_it() -> None:
    async with hosted() as made:
        await made.workload_proxies.start_here("dedicated", SOURCE.info, begin=trio.Event())
        placement = made.workload_proxies.placements["dedicated"]
        made.it.drain.request("SIGTERM")
        await placement.gone.wait()
        assert not await can_connect(made.port(SOURCE, HBONE_PORT))


@trio_test
async def test_our_own_listener_is_for_hbone_only() -> None:
    async with hosted() as made:
        await made.workload_proxies.start_here("ztunnel", SERVER.info, is_own=True)
        assert list(made.it.ports) == [SocketAddress(SERVER.addresses[0], HBONE_PORT)]


@trio_test
async def test_a_drain_ends_every_lease() -> None:
    async with hosted() as made:
        await made.workload_proxies.start(UID, SERVER.info, Netns.own())
        await made.workload_proxies.start("pod-2", SOURCE.info, Netns.own())
        placements = list(made.workload_proxies.placements.values())
        made.it.drain.request("SIGTERM")
        for placement in placements:
            await placement.gone.wait()
        assert made.workload_proxies.placements == {}
        assert made.numbers() == (0, 0, 2, 2)


@trio_test
async def test_the_peers_of_a_deleted_pod_are_told() -> None:
    """Both ways: those that have a tunnel to it, and those it has one to."""
    async with hosted() as made:
        it = made.it
        await made.workload_proxies.start(UID, SERVER.info, Netns.own())
        there = await it.echo(SERVER.addresses[0])
        outbound = it.outbound(SOURCE)
        app = it.call(outbound, there)
        await app.send(b"x")
        assert await app.receive_exactly(1) == b"x"
        (pooled,) = outbound.reach.pool.choices.pooled.values()

        await end(made)
        await pooled.tunnel.ended.wait()
        await until(lambda: len(it.lines.complete) >= 1)
        assert it.lines.errors("inbound") == ["connection closed: the pod is gone"]


def test_moving_in_and_out_cancelled_anywhere_leaves_nothing() -> None:
    async def scenario() -> None:
        async with hosted() as made:
            netns = Netns.own()
            try:
                await made.workload_proxies.start(UID, SERVER.info, netns)
            except trio.Cancelled:
                netns.close()  # not the proxies'
                raise
            assert await can_connect(made.port(SERVER, HBONE_PORT))
            await end(made)
            assert made.workload_proxies.placements == {}
            assert not is_open(netns)

    assert cancelled_everywhere_now(scenario, autojump=False) > 15


@trio_test
async def test_a_lease_that_is_replaced_is_not_forgotten_by_the_old_one() -> None:
    async with hosted() as made:
        await made.workload_proxies.start(UID, SERVER.info, Netns.own())
        old = made.workload_proxies.placements[UID]
        await made.workload_proxies.start(UID, replace(SERVER.info, service_account="new"), Netns.own())
        old.scope.cancel()
        await old.gone.wait()
        assert made.workload_proxies.placements[UID] is not old
