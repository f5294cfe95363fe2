"""Open connections, and policies that change (ztunnel src/proxy/connection_manager.rs)."""

import socket
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, Counted, tcp_pair
from tests.fakes.world import SERVER, SOURCE, at, captured, deny_all, world
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.entries import PolicyEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.ending import Ending, PolicyChanged, Revoked
from ztunnel_trio.model.policy import PolicyScope
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.net.relay import SocketEnd, pair_of
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.registry import InboundEntry, Registry

CLIENT, TARGET = at("127.0.0.2:1"), at("127.0.0.3:80")


def entry_of(source: str = "127.0.0.2:1", host: str | None = None) -> InboundEntry:
    connection = InboundConnection(source=at(source), destination=TARGET, identity=SOURCE.identity)
    return InboundEntry(connection, SERVER, host)


class Stuck(SocketFactory):
    """Sockets whose connection never comes about."""

    def connect_nowait(
        self, destination: SocketAddress, source: IPAddress | None = None
    ) -> tuple[socket.socket, bool]:
        return socket.socket(), False

    async def finish_connecting(self, sock: socket.socket) -> None:
        try:
            await trio.sleep_forever()
        finally:
            sock.close()


async def dial(entry: InboundEntry) -> socket.socket | None:
    return await entry.dial(Stuck(None, SocketSettings()), TARGET, None, 10)


async def hold(registry: Registry, entry: InboundEntry, ended: list[InboundEntry]) -> None:
    """Keep a connection listed until it is ended, as long as it dials."""
    registry.inbound.add(entry)
    try:
        assert await dial(entry) is None
    finally:
        registry.inbound.discard(entry)
    assert entry.ending == PolicyChanged()
    ended.append(entry)


@trio_test
async def test_one_that_dials_is_ended_at_once_for_the_first_reason_given() -> None:
    entry, found = entry_of(), list[socket.socket | None]()

    async def run() -> None:
        found.append(await dial(entry))

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            entry.end(Revoked())
            entry.end(PolicyChanged())

    assert found == [None]
    assert entry.ending == Revoked()


@trio_test
async def test_one_that_relays_is_ended_at_once_and_both_applications_are_reset() -> None:
    async with world() as it:
        entry, endings = entry_of(), list[Ending]()
        (near, far), (there, app) = tcp_pair(), tcp_pair()
        pair = pair_of(it.node.engine, SocketEnd(far), SocketEnd(there), Counted())

        async def run() -> None:
            endings.append(await entry.relay(pair))

        with near, app, trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await wait_all_tasks_blocked()
                entry.end(PolicyChanged())
            assert endings == [PolicyChanged()]
            assert far.fileno() == there.fileno() == -1
            for each in (near, app):
                with pytest.raises(ConnectionResetError):
                    await App(each).receive()


@trio_test
async def test_one_ended_between_its_dial_and_its_relay_moves_nothing() -> None:
    async with world() as it:
        entry, counted = entry_of(), Counted()
        (near, far), (there, app) = tcp_pair(), tcp_pair()
        with near, app:
            near.send(b"x")
            entry.end(PolicyChanged())
            ending = await entry.relay(pair_of(it.node.engine, SocketEnd(far), SocketEnd(there), counted))
            assert ending == PolicyChanged()
            assert counted == Counted(0, 0)


@trio_test
async def test_equal_connections_are_judged_and_told_once() -> None:
    async with world() as it:
        registry, judged = Registry(), list[InboundConnection]()
        entries = [entry_of(), entry_of(), entry_of("127.0.0.2:2")]
        registry.inbound.update(entries)

        def judge(connection: InboundConnection, _workload: Workload) -> bool:
            judged.append(connection)
            return False

        with captured("ztunnel::proxy::connection_manager") as lines:
            await registry.judge_again(it.node.live, SERVER.info, judge)

        assert sorted(str(each.source) for each in judged) == ["127.0.0.2:1", "127.0.0.2:2"]
        assert len(lines.lines) == 2
        assert {each.ending for each in entries} == {PolicyChanged()}


@trio_test
async def test_policy_watcher_lifecycle() -> None:
    async with world() as it:
        registry, ended, judge = Registry(), list[InboundEntry](), Judge(it.node)
        async with trio.open_nursery() as nursery:
            first = entry_of()
            nursery.start_soon(hold, registry, first, ended)
            nursery.start_soon(registry.watch, it.node.live, SERVER.info, judge.allows)
            await wait_all_tasks_blocked()

            it.put(SOURCE)  # no policy changes: nobody is asked again
            await wait_all_tasks_blocked()
            assert ended == []
            with captured("ztunnel::proxy::connection_manager") as lines:
                it.put(deny_all())
                await wait_all_tasks_blocked()
            assert ended == [first]
            nursery.cancel_scope.cancel()
        assert [line["message"] for line in lines.lines] == [
            "connection 127.0.0.2:1(spiffe://cluster.local/ns/ns/sa/source)->127.0.0.3:80 (//Pod/ns/server)"
            " closed because it's no longer allowed after a policy update"
        ]


@trio_test
async def test_a_policy_attached_to_the_workload_later_ends_its_connections() -> None:
    async with world() as it:
        registry, ended, judge = Registry(), list[InboundEntry](), Judge(it.node)
        it.put(deny_all("picky", scope=PolicyScope.WORKLOAD_SELECTOR))
        async with trio.open_nursery() as nursery:
            first = entry_of()
            nursery.start_soon(hold, registry, first, ended)
            nursery.start_soon(registry.watch, it.node.live, SERVER.info, judge.allows)
            await wait_all_tasks_blocked()
            assert ended == []

            it.put(replace(SERVER, authorization_policies=("ns/picky",)))
            await wait_all_tasks_blocked()
            assert ended == [first]
            nursery.cancel_scope.cancel()


@trio_test
async def test_a_workload_gone_for_the_moment_is_judged_as_it_was_known() -> None:
    async with world() as it:
        registry, ended, judge = Registry(), list[InboundEntry](), Judge(it.node)
        async with trio.open_nursery() as nursery:
            first = entry_of()
            nursery.start_soon(hold, registry, first, ended)
            nursery.start_soon(registry.watch, it.node.live, SERVER.info, judge.allows)
            await wait_all_tasks_blocked()
            it.put(gone=(SERVER.uid,))
            await wait_all_tasks_blocked()
            assert ended == []

            it.put(deny_all())
            await wait_all_tasks_blocked()
            assert ended == [first]
            nursery.cancel_scope.cancel()


def test_a_watch_cancelled_anywhere_leaves_nothing() -> None:
    async def scenario() -> None:
        live = LiveMesh(Mesh(local_node="here"))
        live.apply(Batch(addresses=[workload_entry(SERVER)]))
        registry, ended = Registry(), list[InboundEntry]()

        def judge(connection: InboundConnection, workload: Workload) -> bool:
            return False

        try:
            async with trio.open_nursery() as nursery:
                for n in range(3):
                    nursery.start_soon(hold, registry, entry_of(f"127.0.0.2:{n + 1}"), ended)
                await wait_all_tasks_blocked()
                nursery.start_soon(registry.watch, live, SERVER.info, judge)
                await wait_all_tasks_blocked()
                live.apply(Batch(policies=[PolicyEntry("ns/x", deny_all("x"))]))
                await wait_all_tasks_blocked()
                assert len(ended) == 3
                nursery.cancel_scope.cancel()
        finally:
            assert registry.inbound == set()

    assert cancelled_everywhere_now(scenario, most_steps=3000) > 5
