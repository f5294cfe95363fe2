"""Ends on a real kernel: each cause and each kind of carrier and application of the matrix at least once.

All cells are in `tests/scenario/test_ends.py`, on the cores; here are real proxies, captured pods and, for
silence, the real half minute of PING. Both applications must be told by a reset and the line must say why.
"""

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from tests.fakes.raw_peer import RawPeer, SocketWire
from tests.netns.tools import read_exactly, reset
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab import resources
from ztunnel_trio.lab.hbone import HboneServer, certificate_of, detached, forwarding
from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.net.tls.handshake import connect_tls
from ztunnel_trio.pb.authorization_pb2 import Match
from ztunnel_trio.pb.workload_pb2 import Service
from ztunnel_trio.wire.http2.codes import ErrorCode

PORT, FREE = 8080, 0
QUIET = LabSettings(watch_wire=False)
BLOCK = bytes(65_536)
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6])
LOST = "stream closed because of a broken pipe"


@dataclass
class Application:
    """Greets, then does one thing for as long as it may: `idle`, `reading`, `writing` or `blocked`."""

    doing: str
    greeted: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    end: str = ""

    async def __call__(self, stream: trio.SocketStream) -> None:
        """Serve, or use, one connection; leaves in `end` how it ended."""
        try:
            await stream.send_all(b"h")
            self.greeted.set()
            while True:
                match self.doing:
                    case "writing":
                        await stream.send_all(b"event\n")
                        await trio.sleep(0.1)
                    case "blocked":
                        await stream.send_all(BLOCK)
                    case "reading":
                        if not await stream.receive_some():
                            self.end = "an end of data"
                            return
                    case _:
                        await trio.sleep(0.05)
                        error = stream.socket.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_ERROR)
                        if error:
                            self.end = "reset"
                            return
        except trio.BrokenResourceError:
            self.end = "reset"
        finally:
            self.ended.set()


@dataclass
class Scene:
    """A connection that runs: its two applications, and where their proxies log."""

    lab: Lab
    near: Application
    far: Application
    marks: dict[str, int]

    async def told(self, seconds: float = 5.0) -> None:
        """Both applications were told by a reset."""
        with trio.fail_after(seconds):
            await self.near.ended.wait()
            await self.far.ended.wait()
        assert (self.near.end, self.far.end) == ("reset", "reset")

    async def line(self, node: str, error: str) -> None:
        """A node's one line says why."""
        with trio.fail_after(5):
            (line,) = await self.lab.nodes[node].log.wait_access(self.marks[node])
        assert error in line.get("error")


@asynccontextmanager
async def connected(
    lab: Lab, client: Pod, server: Pod, target: SocketAddress, near: str, far: str
) -> AsyncGenerator[Scene, None]:
    """Two applications that have heard of each other."""
    marks = {node.name: node.log.mark() for node in lab.nodes.values()}
    scene = Scene(lab, Application(near), Application(far), marks)
    app = await server.serve(0 if target.port == FREE else target.port, scene.far)
    if target.port == FREE:
        target = SocketAddress(target.ip, app.port)
    async with trio.open_nursery() as nursery:
        stream = await client.connect(target)
        with trio.fail_after(10):
            await scene.far.greeted.wait()
            assert await read_exactly(stream, 1) == b"h"
        nursery.start_soon(scene.near, stream)
        if "blocked" in (near, far):
            await trio.sleep(0.5)
        yield scene
        nursery.cancel_scope.cancel()
        await stream.aclose()
    server.stop_apps()


def address(pod: Pod, version: int) -> IPAddress:
    return pod.ip if version == 4 else pod.ip6


async def two_pods(lab: Lab) -> tuple[Pod, Pod]:
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-2")
    await lab.start()
    return client, server


@BOTH_FAMILIES
@with_lab(QUIET)
async def test_a_proxy_that_is_killed_takes_nobody_in(lab: Lab, version: int) -> None:
    client, server = await two_pods(lab)
    target = SocketAddress(address(server, version), FREE)
    async with connected(lab, client, server, target, "writing", "reading") as scene:
        lab.nodes["node-2"].proxy.kill()
        await scene.told()
        await scene.line("node-1", "io error: ")


@with_lab(QUIET, seconds=90)
async def test_a_node_that_falls_silent_is_found_out_by_ping(lab: Lab) -> None:
    client, server = await two_pods(lab)
    target = SocketAddress(server.ip6, FREE)
    async with connected(lab, client, server, target, "idle", "idle") as scene:
        silent = lab.nodes["node-2"].proxy
        os.kill(silent.pid, signal.SIGSTOP)
        try:
            with trio.fail_after(35):
                await scene.near.ended.wait()
            await scene.line("node-1", "ping timeout")
        finally:
            os.kill(silent.pid, signal.SIGCONT)
        await scene.told()


@pytest.mark.parametrize("drained", ["node-1", "node-2"])
@with_lab(LabSettings(watch_wire=False, environment={"CONNECTION_TERMINATION_DEADLINE": "1s"}))
async def test_the_deadline_of_a_drain_is_a_reset(lab: Lab, drained: str) -> None:
    client, server = await two_pods(lab)
    target = SocketAddress(server.ip, FREE)
    async with connected(lab, client, server, target, "reading", "blocked") as scene:
        with trio.fail_after(10):
            await lab.nodes[drained].proxy.stop()
        await scene.told()
        await scene.line(drained, "connection closed due to connection drain")


@BOTH_FAMILIES
@with_lab(QUIET)
async def test_policies_and_deleted_pods_are_resets_with_a_reason(lab: Lab, version: int) -> None:
    client, server = await two_pods(lab)
    outside = await lab.add_outsider("outside")
    target = SocketAddress(address(server, version), FREE)
    deny = resources.policy("no", Match(not_destination_ports=[1]), deny=True)
    for who, node in ((client, "node-1"), (outside, None)):
        async with connected(lab, who, server, target, "idle", "writing") as scene:
            await lab.push(deny)
            await scene.told()
            await scene.line("node-2", "connection closed due to policy change")
            if node is not None:
                await scene.line(node, "io error: broken pipe")
            await lab.push(removed=["default/no"])
    async with connected(lab, client, server, target, "writing", "idle") as scene:
        await lab.withdraw(server)
        await scene.told()
        await scene.line("node-2", "connection closed: the pod is gone")


@BOTH_FAMILIES
@with_lab(QUIET)
async def test_a_reset_is_passed_on_in_plain_text(lab: Lab, version: int) -> None:
    client, _ = await two_pods(lab)
    outside = await lab.add_outsider("outside")
    target = SocketAddress(address(outside, version), PORT)
    ended = Application("blocked")

    async def reset_soon(stream: trio.SocketStream) -> None:
        await stream.send_all(b"h")
        await trio.sleep(0.5)
        reset(stream)

    await outside.serve(PORT, reset_soon)
    with trio.fail_after(5):
        async with await client.connect(target) as stream:
            await ended(stream)
    assert ended.end == "reset"


Ending = Callable[[RawPeer], None]
PEER_ENDS: dict[str, tuple[Ending, str, str]] = {
    "fin": (lambda peer: peer.wire.fin(), "idle", LOST),
    "close_notify": (lambda peer: peer.wire.close_notify(), "reading", LOST),
    "rst": (lambda peer: peer.wire.rst(), "writing", "io error: "),
    "tls error": (lambda peer: peer.wire.garble(), "blocked", "tls: "),
    "goaway": (lambda peer: peer.go_away(ErrorCode.PROTOCOL_ERROR), "writing", "connection error received"),
    "stream reset": (lambda peer: reset_stream(peer), "reading", "broken pipe"),
}


def reset_stream(peer: RawPeer) -> None:
    peer.core.reset(1, ErrorCode.CANCEL)
    peer.flush()


@with_lab(QUIET)
async def test_whatever_a_peer_does_its_application_is_told(lab: Lab) -> None:
    _, server = await two_pods(lab)
    peer_pod = await lab.add_pod("peer", node="node-1", captured=False)
    certificate = certificate_of(lab.authority, peer_pod.identity)
    for name, (end, doing, error) in PEER_ENDS.items():
        app, log = Application(doing), lab.nodes["node-2"].log
        port = (await server.serve(0, app)).port
        mark = log.mark()
        async with trio.open_nursery() as nursery:
            with trio.fail_after(10):
                peer = await dial(peer_pod.host, server, certificate)
                nursery.start_soon(peer.run)
                peer.core.open_stream(str(SocketAddress(server.ip, port)), [])
                peer.flush()
                await app.greeted.wait()
                if doing == "blocked":
                    await trio.sleep(0.5)
                end(peer)
                await app.ended.wait()
                (line,) = await log.wait_access(mark)
            nursery.cancel_scope.cancel()
        assert (name, app.end) == (name, "reset")
        assert error in line.get("error"), name
        peer.wire.rst()
        server.stop_apps()


async def dial(host: Host, server: Pod, certificate: WorkloadCertificate) -> RawPeer:
    sock = detached(await host.connect(SocketAddress(server.ip, HBONE_PORT)))
    tls, _ = await connect_tls(sock, certificate, [server.identity], contexts=TlsContexts())
    return RawPeer(SocketWire(tls), is_client=True)


@with_lab(QUIET)
async def test_an_inner_tunnel_that_is_lost_with_its_gateway(lab: Lab) -> None:
    client = await lab.add_pod("client", node="node-1")
    server = await lab.add_pod("server", node="node-2")
    gateway = await lab.add_pod("gateway", node="node-2", captured=False)

    def trust(service: Service) -> None:
        service.subject_alt_names.append(str(server.identity))

    await lab.add_service("remote", [], ports={PORT: PORT}, change=trust)
    await lab.start()
    name = "remote.default.svc.cluster.local"
    far_away = resources.workload(
        "remote", uid="remote//Pod/default/remote", services={f"default/{name}": {PORT: PORT}}
    )
    far_away.network = "remote"
    far_away.network_gateway.CopyFrom(resources.gateway(f"remote/{gateway.ip}", HBONE_PORT))
    here = gateway.workload()
    here.network = "remote"
    await lab.push(here, far_away)
    certificate = certificate_of(lab.authority, gateway.identity)
    inner = forwarding(gateway.host, SocketAddress(server.ip, HBONE_PORT))
    target = lab.address_of("remote", PORT)
    async with trio.open_nursery() as nursery:
        ending = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            with ending:
                await HboneServer(gateway.host, certificate, inner).run(task_status=task_status)

        await nursery.start(serve)
        async with connected(lab, client, server, target, "writing", "reading") as scene:
            ending.cancel(reason="the gateway goes")
            await scene.told()
            await scene.line("node-1", "io error: ")


def test_every_row_and_column_is_here() -> None:
    """Sides: outbound, inbound, inner, plain both ways. Doing: all four. Families: both."""
    assert {doing for _, doing, _ in PEER_ENDS.values()} == {"idle", "reading", "writing", "blocked"}
