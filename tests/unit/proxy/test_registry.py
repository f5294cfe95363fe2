"""Open connections, and policies that change (ztunnel src/proxy/connection_manager.rs)."""

from dataclasses import replace

import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.world import SERVER, SOURCE, at, captured, deny_all, world
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.entries import PolicyEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Mesh
from ztunnel_trio.model.connection import InboundConnection
from ztunnel_trio.model.policy import PolicyScope
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.workload import Workload
from ztunnel_trio.proxy.judge import Judge
from ztunnel_trio.proxy.registry import Hold, InboundKey, Registry

POLICY_CHANGE = Refusal(Reason.POLICY_CHANGE)


def key_of(source: str, host: str | None = None) -> InboundKey:
    return InboundKey(
        InboundConnection(source=at(source), destination=at("127.0.0.3:80"), identity=SOURCE.identity), host
    )


FIRST, SECOND = key_of("127.0.0.2:1"), key_of("127.0.0.2:2")


async def hold(registry: Registry, key: InboundKey, ended: list[InboundKey]) -> None:
    with trio.CancelScope() as scope:
        held = Hold(SERVER, scope)
        registry.add(key, held)
        try:
            await trio.sleep_forever()
        finally:
            registry.remove(key, held)
    assert held.refusal is not None
    ended.append(key)


@trio_test
async def test_connection_manager_close() -> None:
    registry, ended = Registry(), list[InboundKey]()
    async with trio.open_nursery() as nursery:
        for key in (FIRST, FIRST, SECOND):
            nursery.start_soon(hold, registry, key, ended)
        await wait_all_tasks_blocked()
        assert {key: len(holders) for key, holders in registry.inbound.items()} == {FIRST: 2, SECOND: 1}

        registry.close(FIRST, POLICY_CHANGE)
        await wait_all_tasks_blocked()
        assert ended == [FIRST, FIRST]
        assert list(registry.inbound) == [SECOND]

        registry.close(FIRST, POLICY_CHANGE)  # there is none any more
        registry.close(SECOND, POLICY_CHANGE)
    assert registry.inbound == {}


def test_connection_manager_release() -> None:
    registry = Registry()
    first, again, second = (Hold(SERVER) for _ in range(3))
    registry.add(FIRST, first)
    registry.add(FIRST, again)
    registry.add(SECOND, second)
    assert set(registry.inbound) == {FIRST, SECOND}
    registry.remove(FIRST, again)
    registry.remove(SECOND, second)
    assert registry.inbound == {FIRST: [first]}
    registry.remove(FIRST, first)
    assert registry.inbound == {}


def test_the_forwarded_host_sets_entries_apart() -> None:
    assert key_of("127.0.0.2:1", "web.example.com") != FIRST


def test_the_first_reason_to_end_stays() -> None:
    scope = trio.CancelScope()
    hold = Hold(SERVER, scope)
    hold.end(Refusal(Reason.CERTIFICATE_REVOKED))
    hold.end(POLICY_CHANGE)

    assert hold.refusal == Refusal(Reason.CERTIFICATE_REVOKED)
    assert scope.cancel_called


def test_one_that_waits_for_nothing_is_told_all_the_same() -> None:
    hold = Hold(SERVER)
    hold.end(POLICY_CHANGE)

    assert hold.refusal == POLICY_CHANGE


@trio_test
async def test_policy_watcher_lifecycle() -> None:
    async with world() as it:
        registry, ended, judge = Registry(), list[InboundKey](), Judge(it.node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, registry, FIRST, ended)
            nursery.start_soon(registry.watch, it.node.live, SERVER.info, judge.allows)
            await wait_all_tasks_blocked()

            it.put(SOURCE)  # no policy changes: nobody is asked again
            await wait_all_tasks_blocked()
            assert ended == []
            with captured("ztunnel::proxy::connection_manager") as lines:
                it.put(deny_all())
                await wait_all_tasks_blocked()
            assert ended == [FIRST]
            nursery.cancel_scope.cancel()
        assert [line["message"] for line in lines.lines] == [
            "connection 127.0.0.2:1(spiffe://cluster.local/ns/ns/sa/source)->127.0.0.3:80 (//Pod/ns/server)"
            " closed because it's no longer allowed after a policy update"
        ]


@trio_test
async def test_a_policy_attached_to_the_workload_later_ends_its_connections() -> None:
    async with world() as it:
        registry, ended, judge = Registry(), list[InboundKey](), Judge(it.node)
        it.put(deny_all("picky", scope=PolicyScope.WORKLOAD_SELECTOR))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, registry, FIRST, ended)
            nursery.start_soon(registry.watch, it.node.live, SERVER.info, judge.allows)
            await wait_all_tasks_blocked()
            assert ended == []

            it.put(replace(SERVER, authorization_policies=("ns/picky",)))
            await wait_all_tasks_blocked()
            assert ended == [FIRST]
            nursery.cancel_scope.cancel()


@trio_test
async def test_a_workload_gone_for_the_moment_is_judged_as_it_was_known() -> None:
    async with world() as it:
        registry, ended, judge = Registry(), list[InboundKey](), Judge(it.node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, registry, FIRST, ended)
            nursery.start_soon(registry.watch, it.node.live, SERVER.info, judge.allows)
            await wait_all_tasks_blocked()
            it.put(gone=(SERVER.uid,))
            await wait_all_tasks_blocked()
            assert ended == []

            it.put(deny_all())
            await wait_all_tasks_blocked()
            assert ended == [FIRST]
            nursery.cancel_scope.cancel()


def test_a_watch_cancelled_anywhere_leaves_nothing() -> None:
    async def scenario() -> None:
        live = LiveMesh(Mesh(local_node="here"))
        live.apply(Batch(addresses=[workload_entry(SERVER)]))
        registry, ended = Registry(), list[InboundKey]()

        def judge(connection: InboundConnection, workload: Workload) -> bool:
            return False

        try:
            async with trio.open_nursery() as nursery:
                for n in range(3):
                    nursery.start_soon(hold, registry, key_of(f"127.0.0.2:{n + 1}"), ended)
                await wait_all_tasks_blocked()
                nursery.start_soon(registry.watch, live, SERVER.info, judge)
                await wait_all_tasks_blocked()
                live.apply(Batch(policies=[PolicyEntry("ns/x", deny_all("x"))]))
                await wait_all_tasks_blocked()
                assert len(ended) == 3
                nursery.cancel_scope.cancel()
        finally:
            assert registry.inbound == {}

    assert cancelled_everywhere_now(scenario, most_steps=3000) > 5
