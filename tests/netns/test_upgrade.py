"""A new version beside the old one: two proxies on a node, the old one leaves, connections never stop."""

import signal
from dataclasses import dataclass, field

import pytest
import trio

from tests.netns.with_lab import with_lab
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod
from ztunnel_trio.lab.proxy_process import ProxyProcess
from ztunnel_trio.model.address import SocketAddress

APP_PORT = 8080
RATE = 150  # connections a second
GRACE = 2.0
SETTINGS = LabSettings(watch_wire=False, environment={"CONNECTION_TERMINATION_DEADLINE": f"{GRACE:.0f}s"})


@dataclass(slots=True, eq=False)
class Traffic:
    """New connections all the time, each with a question and its answer."""

    client: Pod
    target: SocketAddress
    made: int = 0
    failures: list[str] = field(default_factory=list)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            began = trio.current_time()
            while True:
                await trio.sleep_until(began + self.made / RATE)
                self.made += 1
                nursery.start_soon(self.connect)

    async def connect(self) -> None:
        begun = trio.current_time()
        try:
            with trio.fail_after(10):
                async with await self.client.connect(self.target) as stream:
                    await stream.send_all(b"question")
                    heard = await stream.receive_some(64)
            if heard != b"question":
                self.failures.append(f"{trio.current_time() - begun:.3f} s: heard {heard!r}")
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            self.failures.append(f"{trio.current_time() - begun:.3f} s: {error!r}")


async def upgrade(lab: Lab, node: Node) -> ProxyProcess:
    """As a DaemonSet with a surge does: the new one becomes ready, then the old one is told to go."""
    new = await lab.add_proxy(node, f"{node.name}-new")
    new.start(resolv=node.resolv)
    with trio.fail_after(20):
        await new.wait_ready()
        assert await node.proxy.stop(signal.SIGTERM) == 0
    return new


@pytest.mark.parametrize("upgraded", ["node-1", "node-2"])
@with_lab(SETTINGS)
async def test_no_new_connection_is_refused_while_a_proxy_replaces_another(lab: Lab, upgraded: str) -> None:
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-2")
    await lab.start()
    await server.serve(APP_PORT, apps.echo)
    traffic = Traffic(client, SocketAddress(server.ip, APP_PORT))

    async with trio.open_nursery() as nursery:
        await nursery.start(traffic.run)
        await trio.sleep(1)
        new = await upgrade(lab, lab.nodes[upgraded])
        await trio.sleep(1)
        nursery.cancel_scope.cancel(reason="enough")

    assert traffic.failures == []
    assert traffic.made > RATE
    assert new.log.access()


@with_lab(SETTINGS)
async def test_a_connection_from_before_the_upgrade_lives_on_through_the_grace(lab: Lab) -> None:
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-2")
    await lab.start()
    await server.serve(APP_PORT, apps.echo)
    async with await client.connect(SocketAddress(server.ip, APP_PORT)) as stream:
        await stream.send_all(b"one")
        assert await stream.receive_some(64) == b"one"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upgrade, lab, lab.nodes["node-1"])
            await lab.nodes["node-1"].log.wait_text("starting shutdown")
            await trio.sleep(GRACE / 4)
            await stream.send_all(b"two")
            assert await stream.receive_some(64) == b"two"
            with trio.fail_after(GRACE + 5), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some(64)  # a reset: what is cut by us is no end of data
