"""The lab on a real kernel: redirection as istio-cni makes it, with plain sockets instead of a proxy."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.linux import (
    CLONE_NEWNET,
    IP_FREEBIND,
    IP_TRANSPARENT,
    IPV6_FREEBIND,
    IPV6_TRANSPARENT,
    SO_MARK,
    SOL_IP,
    SOL_IPV6,
)
from ztunnel_trio.facts.network import (
    DNS_PORT,
    HBONE_PORT,
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    PACKET_MARK,
    PROBE_SOURCE_V4,
    PROBE_SOURCE_V6,
)
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.hosts import OUTSIDERS, PODS, Fabric, Host, local_of, peer_of
from ztunnel_trio.lab.mesh import Lab, LabSettings, find_labs, open_lab
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.net.netns import Netns

SO_ORIGINAL_DST = 80
APP_PORT = 8080
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6])


@dataclass
class Scene:
    """Two captured pods, one host that is not, and listeners where proxy and application would have them."""

    fabric: Fabric
    a: Host
    b: Host
    outside: Host
    listeners: dict[tuple[str, int], trio.SocketListener]

    async def accept(self, host: Host, port: int) -> trio.SocketStream:
        with trio.fail_after(3):
            return await self.listeners[host.name, port].accept()


@asynccontextmanager
async def two_pods() -> AsyncGenerator[Scene, None]:
    fabric = await Fabric.build()
    a, b = await fabric.plug("a", PODS), await fabric.plug("b", PODS)
    outside = await fabric.plug("outside", OUTSIDERS)
    await a.capture()
    await b.capture()
    ports = (OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT, APP_PORT)
    listeners = {(host.name, port): host.listen(port) for host in (a, b) for port in ports}
    try:
        yield Scene(fabric, a, b, outside, listeners)
    finally:
        for listener in listeners.values():
            await listener.aclose()
        for host in (a, b, outside):
            await fabric.unplug(host)
        fabric.close()


def ip_of(host: Host, version: int) -> IPAddress:
    return host.ip if version == 4 else host.ip6


def original_destination(stream: trio.SocketStream, version: int) -> SocketAddress:
    if version == 4:
        raw = stream.socket.getsockopt(SOL_IP, SO_ORIGINAL_DST, 16)
        return SocketAddress(ip_address(raw[4:8]), struct.unpack("!H", raw[2:4])[0])
    raw = stream.socket.getsockopt(SOL_IPV6, SO_ORIGINAL_DST, 28)
    return SocketAddress(ip_address(raw[8:24]), struct.unpack("!H", raw[2:4])[0])


async def dial_as(
    host: Host, source: IPAddress, target: SocketAddress, mark: int | None
) -> trio.SocketStream:
    """As a proxy in `host` dials the application there with its client's address."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    sock = host.make_socket(family)
    level, transparent, freebind = (
        (SOL_IP, IP_TRANSPARENT, IP_FREEBIND)
        if source.version == 4
        else (SOL_IPV6, IPV6_TRANSPARENT, IPV6_FREEBIND)
    )
    sock.setsockopt(level, transparent, 1)
    sock.setsockopt(level, freebind, 1)
    if mark is not None:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
    sock.bind((str(source), 0))
    wrapped = trio.socket.from_stdlib_socket(sock)
    try:
        await wrapped.connect((str(target.ip), target.port))
    except BaseException:
        wrapped.close()
        raise
    return trio.SocketStream(wrapped)


async def talk(one: trio.SocketStream, other: trio.SocketStream) -> None:
    with trio.fail_after(3):
        await one.send_all(b"ping")
        assert await other.receive_some(16) == b"ping"
        await other.send_all(b"pong")
        assert await one.receive_some(16) == b"pong"


@BOTH_FAMILIES
@trio_test
async def test_a_captured_connection_lands_on_15001_and_remembers_where_it_went(version: int) -> None:
    async with two_pods() as scene:
        target = SocketAddress(ip_of(scene.b, version), APP_PORT)
        async with await scene.a.connect(target) as client:
            server = await scene.accept(scene.a, OUTBOUND_PORT)

            assert peer_of(server).ip == ip_of(scene.a, version)
            assert local_of(server) == SocketAddress(
                ip_address("127.0.0.1" if version == 4 else "::1"), OUTBOUND_PORT
            )
            assert original_destination(server, version) == target
            await talk(client, server)
            await server.aclose()


@BOTH_FAMILIES
@trio_test
async def test_a_marked_socket_passes_unchanged(version: int) -> None:
    async with two_pods() as scene:
        target = SocketAddress(ip_of(scene.b, version), HBONE_PORT)
        async with await scene.a.connect(target, mark=PACKET_MARK) as client:
            server = await scene.accept(scene.b, HBONE_PORT)

            assert peer_of(server).ip == ip_of(scene.a, version)
            await talk(client, server)
            await server.aclose()


@BOTH_FAMILIES
@trio_test
async def test_a_marked_socket_with_its_clients_address_reaches_the_application(version: int) -> None:
    async with two_pods() as scene:
        source = ip_of(scene.a, version)
        target = SocketAddress(ip_of(scene.b, version), APP_PORT)
        async with await dial_as(scene.b, source, target, PACKET_MARK) as upstream:
            server = await scene.accept(scene.b, APP_PORT)

            assert peer_of(server).ip == source
            await talk(upstream, server)
            await server.aclose()


@BOTH_FAMILIES
@trio_test
async def test_without_the_mark_a_foreign_address_gets_no_answer(version: int) -> None:
    async with two_pods() as scene:
        target = SocketAddress(ip_of(scene.b, version), APP_PORT)

        with pytest.raises(trio.TooSlowError), trio.fail_after(0.7):
            await dial_as(scene.b, ip_of(scene.a, version), target, None)


@BOTH_FAMILIES
@pytest.mark.parametrize("port", [APP_PORT, OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT])
@trio_test
async def test_plain_text_from_outside_lands_on_15006(version: int, port: int) -> None:
    async with two_pods() as scene:
        target = SocketAddress(ip_of(scene.b, version), port)
        async with await scene.outside.connect(target) as client:
            server = await scene.accept(scene.b, INBOUND_PLAINTEXT_PORT)

            assert original_destination(server, version) == target
            await talk(client, server)
            await server.aclose()


@BOTH_FAMILIES
@trio_test
async def test_hbone_from_outside_is_left_alone(version: int) -> None:
    async with two_pods() as scene:
        target = SocketAddress(ip_of(scene.b, version), HBONE_PORT)
        async with await scene.outside.connect(target) as client:
            server = await scene.accept(scene.b, HBONE_PORT)

            await talk(client, server)
            await server.aclose()


@BOTH_FAMILIES
@trio_test
async def test_a_pod_reaches_itself_directly(version: int) -> None:
    async with two_pods() as scene:
        loopback = ip_address("127.0.0.1" if version == 4 else "::1")
        for target in (loopback, ip_of(scene.b, version)):
            async with await scene.b.connect(SocketAddress(target, APP_PORT)) as client:
                server = await scene.accept(scene.b, APP_PORT)

                await talk(client, server)
                await server.aclose()


@trio_test
async def test_without_a_listener_on_15001_a_captured_connection_is_refused() -> None:
    async with two_pods() as scene:
        await scene.listeners.pop(("a", OUTBOUND_PORT)).aclose()

        with pytest.raises(ConnectionRefusedError):
            await scene.a.connect(SocketAddress(scene.b.ip, APP_PORT))


@trio_test
async def test_a_question_to_a_resolver_is_answered_by_15053_in_its_name() -> None:
    async with two_pods() as scene:
        datagrams = [scene.a.make_socket(kind=socket.SOCK_DGRAM) for _ in range(2)]
        with datagrams[0] as server, datagrams[1] as client:
            server.bind(("127.0.0.1", DNS_PORT))
            server.settimeout(3)
            client.settimeout(3)
            client.connect(("10.96.0.10", 53))
            client.send(b"question")

            data, asker = server.recvfrom(64)
            server.sendto(b"answer", asker)

            assert data == b"question"
            assert client.recv(64) == b"answer"  # a connected socket takes it from 10.96.0.10:53 only


@BOTH_FAMILIES
@trio_test
async def test_a_health_probe_goes_straight_to_the_application(version: int) -> None:
    async with two_pods() as scene:
        source = ip_address(PROBE_SOURCE_V4 if version == 4 else PROBE_SOURCE_V6)
        target = SocketAddress(ip_of(scene.b, version), APP_PORT)
        async with await scene.fabric.host.connect(target, source=source) as probe:
            server = await scene.accept(scene.b, APP_PORT)

            assert peer_of(server).ip == source
            await talk(probe, server)
            await server.aclose()


@trio_test
async def test_every_host_is_a_namespace_of_its_own() -> None:
    async with two_pods() as scene:
        hosts = [scene.a, scene.b, scene.outside, scene.fabric.host]

        assert len({host.netns.key for host in hosts}) == len(hosts)
        assert len({host.netns.key[0] for host in hosts}) == 1
        assert all(host.netns.is_network_namespace() for host in hosts)
        assert CLONE_NEWNET == 0x40000000


@trio_test
async def test_nothing_stays_in_this_namespace_and_no_descriptor_is_left() -> None:
    async with two_pods():
        pass  # threads keep a descriptor of their own namespace
    before = (set(os.listdir("/sys/class/net")), len(os.listdir("/proc/self/fd")))

    async with two_pods():
        pass

    assert (set(os.listdir("/sys/class/net")), len(os.listdir("/proc/self/fd"))) == before


@with_lab(LabSettings(nodes=("node-1",)))
async def test_the_fabrics_packet_socket_sees_a_payload_that_is_not_encrypted(lab: Lab) -> None:
    client = await lab.add_pod("client", node="node-1", captured=False)
    server = await lab.add_pod("server", node="node-1", captured=False)
    await server.serve(APP_PORT, apps.Hello("server", server.host))
    lab.wire.look_for(b"in-clear-4711")

    response = await apps.call(client.host, SocketAddress(server.ip, APP_PORT), marker="in-clear-4711")
    await trio.sleep(0.05)

    [flow] = [flow for flow in lab.wire.everything() if flow.server.port == APP_PORT]
    assert [hop.client for hop in apps.hops(response.body)] == [str(client.ip)]
    assert flow.markers == {b"in-clear-4711"}
    assert not flow.is_tls13
    assert not flow.sent.has_gap


@with_lab(LabSettings(nodes=("node-1",)))
async def test_other_processes_find_the_namespaces_of_a_lab(lab: Lab) -> None:
    pod = await lab.add_pod("lonely", node="node-1", captured=False)

    [found] = [one for one in find_labs() if one.pid == os.getpid()]

    assert Netns.open(found.namespaces["lonely"]) == pod.host.netns
    assert found.addresses["lonely"] == str(pod.ip)


@with_lab(LabSettings(nodes=("node-1",)))
async def test_a_replanted_pod_and_a_second_proxy_are_served(lab: Lab) -> None:
    pod = await lab.add_pod("server", node="node-1")
    client = await lab.add_pod("client", node="node-1")
    node = lab.nodes["node-1"]
    await lab.start()
    second = await lab.add_proxy(node, "upgrade")
    second.start(resolv=node.resolv)
    with trio.fail_after(20):
        await second.wait_ready()
    old_address, old_netns = pod.ip, pod.host.netns.key

    await lab.replant(pod)
    await pod.serve(APP_PORT, apps.Hello("server", pod.host))
    response = await apps.call(client.host, SocketAddress(pod.ip, APP_PORT))

    assert pod.ip != old_address
    assert pod.host.netns.key != old_netns
    assert [hop.client for hop in apps.hops(response.body)] == [str(client.ip)]
    assert node.proxy.usage().descriptors > 10
    assert "workload_manager_active_proxy_count" in await node.proxy.metrics()
    assert await second.stop() == 0
    assert node.proxy.is_running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_killed_leaves_no_process_and_the_next_one_no_directory(
    number: signal.Signals, tmp_path: Path
) -> None:
    sleeper = f"import sys, time; open({str(tmp_path / 'ran')!r}, 'a').write('x'); time.sleep(60)"
    program = (
        "import sys, trio\n"
        "from ztunnel_trio.cli import until_signal\n"
        "from ztunnel_trio.lab.mesh import LabSettings, open_lab\n"
        f"command = [sys.executable, '-c', {sleeper!r}]\n"
        "async def main():\n"
        "    async with open_lab(LabSettings(nodes=('n',), command=command)) as lab:\n"
        "        lab.nodes['n'].start()\n"
        "        print(lab.nodes['n'].proxy.pid, lab.directory, flush=True)\n"
        "        await trio.sleep(60)\n"
        "trio.run(until_signal, main)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout:
        pid, directory = process.stdout.readline().decode().split()
        _wait_until(lambda: (tmp_path / "ran").exists())

        process.send_signal(number)
        process.wait(10)

    _wait_until(lambda: not Path(f"/proc/{pid}").exists())
    assert not Path(directory).exists() or number == signal.SIGKILL
    assert Path(directory) not in [lab.directory for lab in find_labs()]
    trio.run(_open_and_close)
    assert not Path(directory).exists()


async def _open_and_close() -> None:
    async with open_lab(LabSettings(nodes=())):
        pass


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
