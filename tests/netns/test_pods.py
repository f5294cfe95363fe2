"""Pods that come, go and come back: their ports, their connections, and what stays behind of them."""

import contextlib
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from tests.netns.shared import in_scene, share
from tests.netns.tools import HELLO, double, exchange, fate, read_exactly, total, until
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.network import DNS_PORT, HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.hosts import PODS
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, ProxyRefused, open_lab
from ztunnel_trio.lab.proxy_process import Usage
from ztunnel_trio.model.address import SocketAddress

DOUBLE, ECHO = 8080, 8082
OURS = [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT, DNS_PORT]
CHURNED = 50
TASKS = "tokio_num_alive_tasks"
SLACK_BYTES = 4 * 1024 * 1024


@dataclass
class Scene:
    """`client` and `bystander` on node-1, `server` on node-2; every test brings its own pods."""

    lab: Lab
    client: Pod
    bystander: Pod
    server: Pod

    @property
    def node(self) -> Node:
        return self.lab.nodes["node-1"]

    @property
    def target(self) -> SocketAddress:
        return SocketAddress(self.server.ip, DOUBLE)

    @asynccontextmanager
    async def pod(self, name: str) -> AsyncGenerator[Pod, None]:
        """A pod on node-1 with an application, deleted in the end."""
        pod = await self.lab.add_pod(name, node="node-1")
        try:
            await pod.serve(ECHO, apps.echo)
            yield pod
        finally:
            if name in self.lab.pods:
                await self.lab.delete_pod(pod)


@asynccontextmanager
async def open_scene() -> AsyncGenerator[Scene, None]:
    async with open_lab(LabSettings(watch_wire=False)) as lab:
        scene = Scene(
            lab,
            await lab.add_pod("client", node="node-1"),
            await lab.add_pod("bystander", node="node-1"),
            await lab.add_pod("server", node="node-2"),
        )
        await scene.server.serve(DOUBLE, double)
        await scene.server.serve(ECHO, apps.echo)
        await scene.bystander.serve(ECHO, apps.echo)
        await lab.start()
        yield scene


scene = share(open_scene)


def ours(pod: Pod) -> list[int]:
    """The proxy's ports that somebody listens on in the pod."""
    return [port for port in OURS if port in pod.listening()]


async def ping(stream: trio.SocketStream) -> bool:
    """Whether an echoing connection is alive."""
    with trio.move_on_after(10), contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(b"ping")
        return await read_exactly(stream, 4) == b"ping"
    return False


async def settled(node: Node, descriptors: int) -> Usage:
    """The proxy's usage once it holds no more descriptors than that; idle tunnels close within seconds."""
    with contextlib.suppress(trio.TooSlowError):
        await until(lambda: node.proxy.usage().descriptors <= descriptors, seconds=10)
    return node.proxy.usage()


async def active(node: Node) -> float:
    return await total(node, "workload_manager_active_proxy_count")


@in_scene
async def test_an_added_pod_has_its_ports_when_the_agent_gets_its_answer(scene: Scene) -> None:
    async with scene.pod("new") as pod:
        assert ours(pod) == OURS
        assert await exchange(pod, scene.target) == HELLO + HELLO


@in_scene
async def test_a_deleted_pods_ports_are_free_and_its_connections_cut(scene: Scene) -> None:
    before = scene.node.proxy.usage()
    async with scene.pod("gone") as pod:
        leaving = await pod.connect(SocketAddress(scene.server.ip, ECHO))
        entering = await scene.client.connect(SocketAddress(pod.ip, ECHO))
        bystanding = await scene.client.connect(SocketAddress(scene.server.ip, ECHO))
        assert await ping(leaving) and await ping(entering) and await ping(bystanding)

        await scene.lab.withdraw(pod)

        assert ours(pod) == []
        for stream in (leaving, entering):
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some(1) == b""
        assert await ping(bystanding)
        for stream in (leaving, entering, bystanding):
            await stream.aclose()
        assert await fate(pod, scene.target) == "refused"

    after = await settled(scene.node, before.descriptors + 2)
    assert after.threads <= before.threads
    # a tunnel of the client, which waits for more to do, and its kernel timer at most
    assert after.descriptors <= before.descriptors + 2


@in_scene
async def test_a_server_taken_from_its_proxy_breaks_what_is_open_and_carries_nothing_new(
    scene: Scene,
) -> None:  # test_server_shutdown
    async with scene.pod("leaving") as pod:
        target = SocketAddress(pod.ip, ECHO)
        async with await scene.client.connect(target) as stream:
            assert await ping(stream)

            await scene.node.agent.delete(pod.uid)

            assert not await ping(stream)
        assert await fate(scene.client, target) == "cut"


@in_scene
async def test_a_pod_added_again_with_another_namespace_is_served_there(scene: Scene) -> None:
    async with scene.pod("again") as pod:
        old = pod.host
        fresh = await scene.lab.fabric.plug("again", PODS)
        await fresh.capture()
        started = await total(scene.node, "workload_manager_proxies_started_total")

        error = await scene.node.agent.add(
            pod.uid, name=pod.name, namespace=pod.namespace, service_account="again", netns=fresh.netns
        )

        assert error == ""
        assert ours(pod) == []
        pod.host = fresh
        assert ours(pod) == OURS
        await scene.lab.push(pod.workload())
        assert await exchange(pod, scene.target) == HELLO + HELLO
        assert await total(scene.node, "workload_manager_proxies_started_total") == started + 1
        await scene.lab.fabric.unplug(old)


@in_scene
async def test_a_pod_added_again_unchanged_keeps_its_connections(scene: Scene) -> None:
    async with await scene.client.connect(SocketAddress(scene.server.ip, ECHO)) as stream:
        assert await ping(stream)

        await scene.lab.enrol(scene.client)

        assert await ping(stream)


@in_scene
async def test_a_restarted_agent_touches_no_connection(scene: Scene) -> None:
    async with await scene.client.connect(SocketAddress(scene.server.ip, ECHO)) as stream:
        assert await ping(stream)

        await scene.node.agent.restart()
        assert await ping(stream)
        with trio.fail_after(20):
            await scene.node.agent.connection()

        assert await ping(stream)
    assert await exchange(scene.client, scene.target) == HELLO + HELLO


@in_scene
async def test_what_a_snapshot_does_not_name_is_served_no_more(scene: Scene) -> None:
    target = SocketAddress(scene.server.ip, ECHO)
    async with scene.pod("forgotten") as pod, await scene.client.connect(target) as stream:
        del scene.node.agent.pods[pod.uid]

        await scene.node.agent.restart()
        with trio.fail_after(20):
            await scene.node.agent.connection()

        assert ours(pod) == []
        assert ours(scene.client) == OURS
        assert await ping(stream)


@pytest.mark.parametrize("port", [HBONE_PORT, DNS_PORT])
@in_scene
async def test_a_pod_whose_port_is_taken_is_refused_and_tried_again(scene: Scene, port: int) -> None:
    lab = scene.lab
    pod = await lab.add_pod(f"busy{port}", node="node-1", captured=False)
    taken = pod.host.make_socket(socket.AF_INET)
    taken.bind(("127.0.0.1", port))
    taken.listen()
    await pod.host.capture()
    pod.is_captured = pod.hbone = True

    with pytest.raises(ProxyRefused) as caught:
        await lab.enrol(pod)
    assert "Address already in use" in str(caught.value)
    assert ours(pod) == [port]
    assert await total(scene.node, "workload_manager_pending_proxy_count") == 1
    assert await exchange(scene.client, scene.target) == HELLO + HELLO

    taken.close()
    await until(lambda: ours(pod) == OURS, seconds=7)
    await lab.push(pod.workload())
    assert await exchange(pod, scene.target) == HELLO + HELLO
    assert await total(scene.node, "workload_manager_pending_proxy_count") == 0
    await lab.delete_pod(pod)


async def churn(scene: Scene, round_: int) -> None:
    """Fifty pods come, talk, and go."""
    pods = [await scene.lab.add_pod(f"churn{round_}-{n}", node="node-1") for n in range(CHURNED)]
    for pod in pods:
        assert await exchange(pod, scene.target) == HELLO + HELLO
    for pod in pods:
        await scene.lab.delete_pod(pod)


@in_scene
async def test_50_pods_leave_no_descriptor_thread_or_memory_behind(scene: Scene) -> None:
    count = await active(scene.node)
    for first in (1, 2):  # what is made once and kept: caches, the allocator's reserves
        await churn(scene, first)
    before, tasks = scene.node.proxy.usage(), await total(scene.node, TASKS)

    await churn(scene, 3)

    after = await settled(scene.node, before.descriptors)
    assert await total(scene.node, TASKS) <= tasks
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads  # one that read a file may have gone since
    assert after.resident_bytes <= before.resident_bytes + SLACK_BYTES
    assert await active(scene.node) == count


@with_lab(LabSettings(watch_wire=False))
async def test_a_proxy_told_to_stop_serves_what_is_open_and_nothing_new(
    lab: Lab,
) -> None:  # test_ztunnel_shutdown
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-2")
    await server.serve(ECHO, apps.echo)
    await lab.start()
    node, target = lab.nodes["node-1"], SocketAddress(server.ip, ECHO)
    async with await client.connect(target) as stream:
        assert await ping(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.proxy.stop, signal.SIGTERM)
            await until(lambda: OUTBOUND_PORT not in client.listening())
            assert await ping(stream)
            assert await fate(client, target) == "refused"
            await stream.aclose()

    assert node.proxy.returncode == 0
    assert ours(client) == []


@with_lab(LabSettings(nodes=("node-1",), watch_wire=False))
async def test_while_one_proxy_takes_over_from_another_no_connection_is_refused(lab: Lab) -> None:
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-1")
    await server.serve(DOUBLE, double)
    await server.serve(ECHO, apps.echo)
    await lab.start()
    node, target = lab.nodes["node-1"], SocketAddress(server.ip, DOUBLE)
    successor = await lab.add_proxy(node, "node-1-next")
    answers: list[bytes | str] = []

    async def keep_calling() -> None:
        while True:
            answers.append(await fate(client, target))
            await trio.sleep(0.005)

    async with (
        trio.open_nursery() as nursery,
        await client.connect(SocketAddress(server.ip, ECHO)) as lasting,
    ):
        assert await ping(lasting)
        nursery.start_soon(keep_calling)
        successor.start(resolv=node.resolv)
        await successor.wait_ready()
        async with trio.open_nursery() as stopping:
            stopping.start_soon(node.proxy.stop, signal.SIGTERM)
            await trio.sleep(0.5)
            assert await ping(lasting)
            await lasting.aclose()
        before = len(answers)
        await until(lambda: len(answers) >= before + 20)
        nursery.cancel_scope.cancel(reason="enough")

    assert node.proxy.returncode == 0
    assert set(answers) == {HELLO + HELLO}
    assert ours(client) == OURS
