"""Captured traffic with certificates of a real SPIRE agent, and what becomes of it when that fails.

Each workload has a process under a user id of its own, which the agent attests; the proxies run as root.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.netns.live_traffic import undisturbed
from tests.netns.tools import HELLO, exchange, fate, read_exactly
from tests.spire.real_spire import PROXY, RealSpire, running
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod, open_lab
from ztunnel_trio.model.address import SocketAddress

PORT = 8080
FIRST_UID = 20_001
BINARIES = os.environ.get("SPIRE_BIN")  # noqa: TID251  set by the nox session
pytestmark = pytest.mark.skipif(BINARIES is None, reason="SPIRE_BIN names no SPIRE: nox -s spire")

DELEGATED = {"CA_PROVIDER": "spire_delegated_pid"}
BROKERED = {"CA_PROVIDER": "spiffe_broker", "SPIFFE_BROKER_ATTESTATION": "pid"}
each_way = pytest.mark.parametrize("way", [DELEGATED, BROKERED], ids=["delegated", "broker"])


@dataclass
class Scene:
    """A mesh whose pods have registered processes."""

    spire: RealSpire
    lab: Lab
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    async def add_pod(self, name: str, node: str, *, is_registered: bool = True) -> Pod:
        """A pod with a process of its own user, and an entry for that user."""
        pod = await self.lab.add_pod(name, node=node)
        uid = FIRST_UID + len(self.processes)
        self.processes[name] = process_in(pod, uid)
        if is_registered:
            await self.spire.register(str(pod.identity), uid=uid)
        return pod

    async def pair(self) -> tuple[Pod, Pod, SocketAddress]:
        client = await self.add_pod("client", "node-1")
        server = await self.add_pod("server", "node-2")
        await server.serve(PORT, apps.echo)
        await self.lab.start()
        target = SocketAddress(server.ip, PORT)
        with trio.fail_after(30):
            while await fate(client, target) != HELLO:  # noqa: ASYNC110  the agent learns of entries by the second
                await trio.sleep(0.2)
        return client, server, target

    async def serials(self, pod: Pod) -> set[str]:
        """The serial numbers that a pod's certificate has in the dumps."""
        return {
            certificate["serialNumber"]
            for node in self.lab.nodes.values()
            for one in json.loads((await node.proxy.admin("/config_dump")).text)["certificates"]
            if one["identity"] == str(pod.identity)
            for certificate in one["certChain"][:1]
        }

    def end(self) -> None:
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


def process_in(pod: Pod, uid: int) -> "subprocess.Popen[bytes]":
    """A process of a user in a pod's network namespace; it ends when its input does."""
    with pod.host.netns.inside():
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, user=uid, cwd="/")


@asynccontextmanager
async def scene(way: dict[str, str], *, lifetime: str = "1h") -> AsyncGenerator[Scene, None]:
    assert BINARIES is not None
    with tempfile.TemporaryDirectory(prefix="spire-") as made:
        async with running(Path(made), Path(BINARIES), lifetime=lifetime) as spire:
            environment = {
                **way,
                "RUST_LOG": "info,ztunnel::identity=debug",
                "SPIRE_ADMIN_ENDPOINT_SOCKET": f"unix://{spire.admin_socket}",
                "SPIFFE_ENDPOINT_SOCKET": f"unix://{spire.workload_socket}",
                "SPIFFE_BROKER_SOCKET": f"unix://{spire.broker_socket}",
            }
            async with open_lab(LabSettings(watch_wire=False, environment=environment)) as lab:
                made_scene = Scene(spire, lab)
                try:
                    yield made_scene
                except BaseException:
                    for name, node in lab.nodes.items():
                        print(name, "\n".join(node.log.raw()[-40:]), sep="\n")  # noqa: T201
                    print(spire.log_of("agent")[-4000:])  # noqa: T201
                    raise
                finally:
                    made_scene.end()


@each_way
def test_pods_are_certified_as_what_their_own_process_is(way: dict[str, str]) -> None:
    async def main() -> None:
        with trio.fail_after(120):
            async with scene(way) as it:
                client, server, target = await it.pair()

                assert await exchange(client, target) == HELLO
                assert it.lab.istiod.ca.calls == []
                for node in it.lab.nodes.values():
                    for one in json.loads((await node.proxy.admin("/config_dump")).text)["certificates"]:
                        wanted = client if "client" in one["identity"] else server
                        is_own = one["identity"] == PROXY
                        assert is_own or one["identity"] == str(wanted.identity), "nobody else's SVID"
                    told = "\n".join(node.log.raw())
                    assert not re.search("(got|attested as) spiffe://", told), "a message had another's SVID"
                assert not await it.serials(client) & await it.serials(server)

    trio.run(main)


@each_way
def test_the_agent_may_die_and_come_back_under_traffic(way: dict[str, str]) -> None:
    async def main() -> None:
        with trio.fail_after(150):
            async with scene(way) as it:
                client, _, target = await it.pair()
                async with undisturbed(client, [target]):
                    await it.spire.kill_agent()
                    await trio.sleep(3)
                    await it.spire.start_agent()
                    await trio.sleep(5)

    trio.run(main)


def test_certificates_of_a_minute_rotate_without_a_failed_connection() -> None:
    async def main() -> None:
        with trio.fail_after(400):
            async with scene(DELEGATED, lifetime="1m") as it:
                client, _, target = await it.pair()
                seen: set[str] = set()
                async with undisturbed(client, [target]):
                    with trio.move_on_after(330):
                        while len(seen) < 6:
                            seen |= await it.serials(client)
                            await trio.sleep(1)

                assert len(seen) >= 6, "five rotations"

    trio.run(main)


def test_an_entry_that_is_removed_ends_new_handshakes_and_no_connection() -> None:
    async def main() -> None:
        with trio.fail_after(120):
            async with scene({**DELEGATED, "SPIRE_TIMEOUT": "1s"}) as it:
                client, _, target = await it.pair()
                async with await client.connect(target) as held:
                    await held.send_all(HELLO)
                    assert await read_exactly(held, len(HELLO)) == HELLO
                    other = await it.add_pod("other", "node-1")
                    await other.serve(PORT, apps.echo)
                    await it.spire.withdraw(str(client.identity))
                    with trio.fail_after(30):
                        while await it.serials(client):  # noqa: ASYNC110  the agent syncs by the second
                            await trio.sleep(0.2)

                    assert await fate(client, SocketAddress(other.ip, PORT)) == "cut"
                    await held.send_all(HELLO)
                    assert await read_exactly(held, len(HELLO)) == HELLO

    trio.run(main)


def test_a_new_authority_with_overlap_fails_nobody() -> None:
    async def main() -> None:
        with trio.fail_after(200):
            async with scene(DELEGATED, lifetime="1m") as it:
                client, _, target = await it.pair()
                before = await it.serials(client)
                async with undisturbed(client, [target]):
                    await it.spire.rotate_authority()
                    with trio.fail_after(90):
                        while await it.serials(client) & before:  # noqa: ASYNC110  half of a minute's life
                            await trio.sleep(1)
                    await trio.sleep(5)

    trio.run(main)
