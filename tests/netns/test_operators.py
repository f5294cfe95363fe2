"""Slow clients on the ports of operators, from a pod: the kubelet's probe is answered within a second."""

from contextlib import AsyncExitStack

import pytest
import trio

from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.network import READINESS_PORT, STATS_PORT
from ztunnel_trio.lab.mesh import Lab, LabSettings
from ztunnel_trio.model.address import SocketAddress

SLOW_CLIENTS = 200
SECONDS = 5


@pytest.mark.parametrize("port", [READINESS_PORT, STATS_PORT])
@with_lab(LabSettings(nodes=("node-1",), watch_wire=False))
async def test_two_hundred_slow_clients_cost_the_probe_less_than_a_second(lab: Lab, port: int) -> None:
    slow = await lab.add_pod("slow", node="node-1")
    await lab.start()
    node = lab.nodes["node-1"]
    target = SocketAddress(node.host.ip, port)

    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await slow.connect(target)) for _ in range(SLOW_CLIENTS)]
        for byte in b"GET /healthz"[:SECONDS]:
            for stream in streams:
                try:
                    await stream.send_all(bytes([byte]))
                except trio.BrokenResourceError:  # it gave way
                    continue
            with trio.fail_after(1):
                assert await node.proxy.ready() == 200
            await trio.sleep(1)  # slow clients are slow
