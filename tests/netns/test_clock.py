"""The wall clock of a node jumps, as in a suspend: what ended is renewed at once, and never offered.

The proxy of one node runs under Debian's libfaketime, which moves its wall clock, not its monotonic one.
"""

import json
from pathlib import Path

import pytest
import trio

from tests.netns.tools import HELLO, fate, total
from ztunnel_trio.facts.network import ADMIN_PORT
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, open_lab
from ztunnel_trio.lab.proxy_process import default_command
from ztunnel_trio.model.address import SocketAddress

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
ECHO = 8082
SHORT_SECONDS, LONG_SECONDS = 600.0, 7200.0
STEP_SECONDS = 900


def command(offset: Path) -> list[str]:
    """Our own proxy, whose wall clock is as far ahead as a file says."""
    return [
        "/usr/bin/env",
        f"LD_PRELOAD={LIBRARY}",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "FAKETIME_NO_CACHE=1",
        f"FAKETIME_TIMESTAMP_FILE={offset}",
        *default_command(),
    ]


async def certificates(node: Node) -> dict[str, str]:
    """The state of each identity's certificate."""
    page = await node.proxy.get(ADMIN_PORT, "/config_dump")
    return {one["identity"]: one["state"] for one in json.loads(page.text)["certificates"]}


async def renewed(lab: Lab, pod: Pod) -> None:
    """Wait until the CA has given a second certificate for a pod's identity."""
    with trio.fail_after(10):
        while lab.istiod.ca.count(str(pod.identity)) < 2:
            await lab.istiod.ca.changed.newer_than(lab.istiod.ca.changed.version)


@pytest.mark.skipif(not LIBRARY.exists(), reason="needs Debian's faketime")
def test_certificates_that_ended_in_a_suspend_are_renewed_at_once_and_never_offered(tmp_path: Path) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0\n")

    async def main() -> None:
        settings = LabSettings(watch_wire=False, commands={"node-1": command(offset)})
        with trio.fail_after(60):
            async with open_lab(settings) as lab:
                ca, node = lab.istiod.ca, lab.nodes["node-1"]
                ca.backdated = 0.0
                client = await lab.add_pod("client", node="node-1")
                idle = await lab.add_pod("idle", node="node-1")
                server = await lab.add_pod("server", node="node-2")
                for pod in (client, idle):
                    ca.lifetime_for[str(pod.identity)] = SHORT_SECONDS
                ca.lifetime_for[str(server.identity)] = LONG_SECONDS
                await server.serve(ECHO, apps.echo)
                await lab.start()
                assert await fate(client, SocketAddress(server.ip, ECHO)) == HELLO
                ca.lifetime_for.clear()

                mark = node.log.mark()
                (tmp_path / "new").write_text(f"+{STEP_SECONDS}\n")
                (tmp_path / "new").replace(offset)
                await renewed(lab, client)
                await renewed(lab, idle)

                assert await fate(client, SocketAddress(server.ip, ECHO)) == HELLO
                states = await certificates(node)
                assert states[str(client.identity)] == states[str(idle.identity)] == "Available"
                assert await total(node, "ztunnel_trio_clock_steps_total") == 1
                assert await total(node, "ztunnel_trio_certificates", state="expired") == 0
                assert await total(node, "ztunnel_trio_certificate_left_seconds") > SHORT_SECONDS
                assert any("the wall clock has moved by +900 s" in line for line in node.log.raw(mark))

    trio.run(main)
