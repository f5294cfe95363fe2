"""The live mesh: who is told what, and waiting for a workload."""

import logging

import pytest
import trio
import trio.testing

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.live_mesh import LiveMesh
from ztunnel_trio.mesh.entries import PolicyEntry, workload_entry
from ztunnel_trio.mesh.mesh import Batch, Changes, Mesh
from ztunnel_trio.model.policy import Action, Authorization, PolicyScope
from ztunnel_trio.model.workload import Workload, WorkloadInfo

INFO = WorkloadInfo("web", "ns", "sa")


def batch(name: str = "web", *, policies: tuple[str, ...] = (), node: str = "n1") -> Batch:
    workload = Workload(
        uid=name, name=name, namespace="ns", service_account="sa", node=node, authorization_policies=policies
    )
    return Batch(addresses=[workload_entry(workload)])


def live_mesh() -> LiveMesh:
    return LiveMesh(Mesh(local_node="n1"))


@trio_test(autojump=True)
async def test_a_workload_that_is_there_is_returned_at_once() -> None:
    live = live_mesh()
    live.apply(batch())
    begun = trio.current_time()

    workload = await live.local_workload(INFO)

    assert workload is not None
    assert trio.current_time() == begun


@trio_test(autojump=True)
async def test_a_workload_that_never_comes_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    begun = trio.current_time()

    with caplog.at_level(logging.WARNING):
        assert await live_mesh().local_workload(INFO, seconds=0.005) is None

    assert trio.current_time() - begun == pytest.approx(0.005)
    assert caplog.messages == ["timed out waiting for workload 'sa.ns (web)' from xds"]


@trio_test(autojump=True)
async def test_a_workload_that_comes_later_is_waited_for() -> None:
    live = live_mesh()
    found: list[Workload | None] = []

    async def wait() -> None:
        found.append(await live.local_workload(INFO, seconds=0.25))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        live.apply(batch("other"))
        await trio.sleep(0.1)
        assert found == []
        live.apply(batch())

    assert [each and each.name for each in found] == ["web"]


def test_each_kind_of_change_has_its_watch() -> None:
    live = live_mesh()
    versions: list[tuple[int, int]] = []

    def look() -> None:
        versions.append((live.workloads_changed.version, live.policies_changed.version))

    policy = Authorization(name="p", namespace="ns", scope=PolicyScope.GLOBAL, action=Action.DENY)
    for change in (
        batch(),
        Batch(policies=[PolicyEntry("ns/p", policy)]),
        batch(policies=("ns/p",)),
        batch("elsewhere", node="n2", policies=("ns/p",)),
        Batch(),
    ):
        live.apply(change)
        look()

    assert versions == [(1, 0), (1, 1), (2, 2), (3, 2), (3, 2)]
    assert live.workloads_changed.value == live.mesh.revision


def test_callbacks_hear_of_workloads_after_the_mesh_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    live = live_mesh()
    heard: list[tuple[Changes, Workload | None]] = []
    live.on_workloads.append(lambda changes: heard.append((changes, live.mesh.workload("web"))))

    live.apply(batch())
    with caplog.at_level(logging.WARNING):
        live.apply(Batch(removed_addresses=["ns/none"]))

    assert len(heard) == 1
    changes, workload = heard[0]
    assert workload is not None
    assert [put.uid for put in changes.put] == ["web"]
    assert caplog.messages == ["removal of ns/none: no such service"]


def test_waiting_can_be_cancelled_at_any_step() -> None:
    async def scenario() -> None:
        live = live_mesh()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.local_workload, INFO)
            await trio.sleep(1)
            live.apply(batch())

    assert cancelled_everywhere_now(scenario) > 2
