"""The data path on a real kernel: two nodes, proxies as processes, pods whose traffic istio's rules redirect.

Where a test has an equal in ztunnel's `tests/namespaced.rs`, its parameter or its comment names it.
"""

import contextlib
import hashlib
import ssl
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
import trio

from tests.netns.shared import in_scene, share
from tests.netns.tools import (
    HELLO,
    attached,
    changed,
    double,
    exchange,
    fate,
    ip_of,
    read_all,
    read_exactly,
    reset,
    told,
    total,
    traffic,
    until,
)
from ztunnel_trio.facts.network import (
    ADMIN_PORT,
    HBONE_PORT,
    INBOUND_PLAINTEXT_PORT,
    OUTBOUND_PORT,
    READINESS_PORT,
    SOCKS5_PORT,
    STATS_PORT,
)
from ztunnel_trio.lab import apps, http, resources
from ztunnel_trio.lab.hbone import HboneServer, Peer, answering, certificate_of, forwarding, open_tunnel
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, open_lab
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.proxy_log import LogLine
from ztunnel_trio.model.address import HboneTarget, HostPort, IPAddress, SocketAddress
from ztunnel_trio.model.certificate import WorkloadCertificate, parse_chain
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.pb.authorization_pb2 import Authorization, Match
from ztunnel_trio.pb.workload_pb2 import ApplicationTunnel, GatewayAddress, Port, PortList, Service, Workload
from ztunnel_trio.proxy.tunnel.stream import H2Failed
from ztunnel_trio.wire.proxy_protocol import header_bytes, parse_header

DOUBLE, WHOAMI, ECHO, DIGEST, SOURCE = 8080, 8081, 8082, 8083, 8084
LARGE_BYTES = 64 * 1024 * 1024
CONNECTIONS = 500
QUIET_SECONDS = 0.03
VIP_PORT = 80
BOTH_FAMILIES = pytest.mark.parametrize("version", [4, 6])
GARBAGE = b"\x13\x37 not what you expect\r\n\r\n" * 4


@dataclass
class Scene:
    """Captured: `client` and `near` on node-1, `server` on node-2.

    Not captured: `plain`, which istiod does not know, `known`, which it does, and `gateway`, which ends HBONE
    itself.
    """

    lab: Lab
    client: Pod
    near: Pod
    server: Pod
    plain: Pod
    known: Pod
    gateway: Pod

    def pod(self, name: str) -> Pod:
        return self.lab.pods[name]

    @property
    def vip(self) -> SocketAddress:
        return self.lab.address_of("server")

    @asynccontextmanager
    async def lines(self, *pods: Pod, count: int = 1) -> AsyncGenerator[list[LogLine], None]:
        """The access lines that the body's connections leave, so many at each node of these pods."""
        nodes = [pod.node for pod in pods if pod.node is not None]
        marks = [await quiet_mark(node) for node in nodes]  # a line of what went before may still be due
        found: list[LogLine] = []
        yield found
        with trio.fail_after(5):
            for node, mark in zip(nodes, marks, strict=True):
                found += await node.log.wait_access(mark, count=count)


async def quiet_mark(node: Node) -> int:
    """The end of a node's log, once nothing has been added for a moment."""
    mark = -1
    while mark != (mark := node.log.mark()):  # noqa: ASYNC110  a file cannot tell
        await trio.sleep(QUIET_SECONDS)
    return mark


@asynccontextmanager
async def open_scene() -> AsyncGenerator[Scene, None]:
    async with open_lab(LabSettings(watch_wire=False)) as lab:
        scene = Scene(
            lab,
            await lab.add_pod("client", node="node-1"),
            await lab.add_pod("near", node="node-1"),
            await lab.add_pod("server", node="node-2"),
            await lab.add_outsider("plain"),
            await lab.add_pod("known", node="node-2", captured=False),
            await lab.add_pod("gateway", node="node-2", captured=False),
        )
        await lab.add_service("server", [scene.server], ports={VIP_PORT: DOUBLE})
        for pod in (scene.near, scene.server, scene.plain, scene.known, scene.client):
            await pod.serve(DOUBLE, double)
            await pod.serve(WHOAMI, apps.whoami)
            await pod.serve(ECHO, apps.echo)
            await pod.serve(DIGEST, apps.digest)
            await pod.serve(SOURCE, apps.source(LARGE_BYTES))
        await lab.start()
        yield scene


scene = share(open_scene)


# ------------------------------------------------------------------ pod to pod


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("near", id="local_captured_inpod"),
        pytest.param("server", id="cross_node_captured_inpod"),
    ],
)
@BOTH_FAMILIES
@in_scene
async def test_a_connection_is_carried_logged_and_counted_on_both_sides(
    scene: Scene, name: str, version: int
) -> None:
    client, server = scene.client, scene.pod(name)
    assert client.node is not None and server.node is not None
    source = {"reporter": "source", "destination_workload": name}
    destination = {"reporter": "destination", "destination_workload": name}
    before = await traffic(client.node, **source), await traffic(server.node, **destination)

    pods = (client, server) if client.node is not server.node else (client,)
    async with scene.lines(*pods, count=3 - len(pods)) as lines:
        answer = await exchange(client, SocketAddress(ip_of(server, version), DOUBLE))

    assert answer == HELLO + HELLO
    assert {line.get("direction") for line in lines} == {"inbound", "outbound"}
    for line in lines:
        assert line.message == "connection complete"
        assert line.get("src.workload") == "client"
        assert line.get("dst.workload") == name
        assert line.get("src.identity") == str(client.identity)
        assert line.get("dst.identity") == str(server.identity)
    after = await traffic(client.node, **source), await traffic(server.node, **destination)
    for old, new in zip(before, after, strict=True):
        assert {key: new[key] - old[key] for key in new} == {
            "opened": 1,
            "closed": 1,
            "received": len(HELLO),
            "sent": len(HELLO + HELLO),
        }


@in_scene
async def test_a_service_address_leads_to_its_endpoint(scene: Scene) -> None:
    async with scene.lines(scene.client) as lines:
        assert await exchange(scene.client, scene.vip) == HELLO + HELLO

    [line] = lines
    assert line.get("dst.service") == "server.default.svc.cluster.local"
    assert line.get("dst.hbone_addr") == f"{scene.server.ip}:{DOUBLE}"
    assert line.get("dst.addr") == f"{scene.server.ip}:{HBONE_PORT}"


@in_scene
async def test_a_service_is_spread_over_its_endpoints(scene: Scene) -> None:  # service_loadbalancing
    assert scene.client.node is not None
    await scene.lab.add_service("spread", [scene.near, scene.server], ports={VIP_PORT: WHOAMI})
    labels = {
        "reporter": "source",
        "destination_service": "spread.default.svc.cluster.local",
        "destination_service_name": "spread",
        "destination_service_namespace": "default",
    }

    async with scene.lines(scene.client, count=40) as lines:
        for _ in range(40):
            await exchange(scene.client, scene.lab.address_of("spread"))

    assert {line.get("dst.workload") for line in lines if line.get("direction") == "outbound"} == {
        "near",
        "server",
    }
    assert await total(scene.client.node, "istio_tcp_connections_opened_total", **labels) == 40


@BOTH_FAMILIES
@in_scene
async def test_the_server_speaks_first_and_sees_the_clients_address(scene: Scene, version: int) -> None:
    for server in (scene.near, scene.server):
        answer = await exchange(scene.client, SocketAddress(ip_of(server, version), WHOAMI), b"")

        assert answer.decode().split()[0] == str(ip_of(scene.client, version))


@pytest.mark.parametrize("name", ["plain", "known"])
@BOTH_FAMILIES
@in_scene
async def test_plain_text_leaves_for_what_is_not_in_the_mesh(scene: Scene, name: str, version: int) -> None:
    target = SocketAddress(ip_of(scene.pod(name), version), DOUBLE)

    async with scene.lines(scene.client) as lines:  # server_uncaptured_inpod
        assert await exchange(scene.client, target) == HELLO + HELLO

    [line] = lines
    assert line.get("dst.addr") == str(target)
    assert "src.identity" not in line.fields
    assert "dst.identity" not in line.fields
    assert line.get("dst.workload") == ("known" if name == "known" else "")


@pytest.mark.parametrize("name", ["plain", "known"])
@BOTH_FAMILIES
@in_scene
async def test_plain_text_enters_from_what_is_not_in_the_mesh(
    scene: Scene, name: str, version: int
) -> None:  # client_uncaptured_inpod
    target = SocketAddress(ip_of(scene.server, version), WHOAMI)

    async with scene.lines(scene.server) as lines:
        answer = await exchange(scene.pod(name), target, b"")

    [line] = lines
    assert answer.decode().split()[0] == str(ip_of(scene.pod(name), version))
    assert line.get("direction") == "inbound"
    assert line.get("dst.addr") == str(target)
    assert "src.identity" not in line.fields
    assert line.get("src.workload") == ("known" if name == "known" else "")


# ------------------------------------------------------------------ volume


@pytest.mark.parametrize("name", ["near", "server", "plain"])
@in_scene
async def test_64_mib_pass_both_ways_at_once_with_equal_checksums(scene: Scene, name: str) -> None:
    ip = scene.pod(name).ip
    block = apps.payload(1 << 20)
    wanted = hashlib.sha256(block * (LARGE_BYTES // len(block))).hexdigest()
    sums: list[str] = []

    async def upload() -> None:
        async with await scene.client.connect(SocketAddress(ip, DIGEST)) as stream:
            for _ in range(LARGE_BYTES // len(block)):
                await stream.send_all(block)
            await stream.send_eof()
            length, _, text = (await read_all(stream)).decode().partition(" ")
            assert length == str(LARGE_BYTES)
            sums.append(text)

    async def download() -> None:
        seen = hashlib.sha256()
        async with await scene.client.connect(SocketAddress(ip, SOURCE)) as stream:
            await stream.send_eof()
            while data := await stream.receive_some(262_144):
                seen.update(data)
        sums.append(seen.hexdigest())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upload)
        nursery.start_soon(download)

    assert sums == [wanted, wanted]


@pytest.mark.parametrize("name", ["server", "plain"])
@in_scene
async def test_500_connections_are_open_at_once(scene: Scene, name: str) -> None:
    target = SocketAddress(scene.pod(name).ip, ECHO)
    echoing = next(app for app in scene.pod(name).running if app.port == ECHO)
    all_open = trio.Event()
    seen: list[int] = []

    async def talk(number: int) -> None:
        async with await scene.client.connect(target) as stream:
            message = b"%04d" % number * 25
            await stream.send_all(message)
            assert await read_exactly(stream, len(message)) == message
            seen.append(number)
            if len(seen) == CONNECTIONS:
                assert echoing.open_connections == CONNECTIONS
                all_open.set()
            await all_open.wait()
            await stream.send_all(message)
            assert await read_exactly(stream, len(message)) == message

    async with trio.open_nursery() as nursery:
        for number in range(CONNECTIONS):
            nursery.start_soon(talk, number)

    assert sorted(seen) == list(range(CONNECTIONS))
    await until(lambda: echoing.open_connections == 0)


# ------------------------------------------------------------------ ends and resets


@pytest.mark.parametrize("name", ["near", "server", "plain"])
@in_scene
async def test_the_client_may_end_first_and_still_be_answered(scene: Scene, name: str) -> None:
    async def answer_after_the_end(stream: trio.SocketStream) -> None:
        request = await read_all(stream)
        for _ in range(3):
            await stream.send_all(request)
            await trio.sleep(0.01)

    app = await scene.pod(name).serve(0, answer_after_the_end)

    assert await exchange(scene.client, SocketAddress(app.host.ip, app.port)) == HELLO * 3


@pytest.mark.parametrize("name", ["near", "server", "plain"])
@in_scene
async def test_the_server_may_end_first_and_still_listen(scene: Scene, name: str) -> None:
    heard: list[bytes] = []
    done = trio.Event()

    async def end_then_listen(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")
        await stream.send_eof()
        heard.append(await read_all(stream))
        done.set()

    app = await scene.pod(name).serve(0, end_then_listen)

    async with await scene.client.connect(SocketAddress(app.host.ip, app.port)) as stream:
        assert await read_all(stream) == b"bye"
        for _ in range(3):
            await stream.send_all(HELLO)
            await trio.sleep(0.01)
        await stream.send_eof()
        await done.wait()

    assert heard == [HELLO * 3]


@pytest.mark.parametrize("name", ["near", "server", "plain"])
@in_scene
async def test_a_reset_of_the_server_is_a_reset_for_the_client(scene: Scene, name: str) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        reset(stream)

    app = await scene.pod(name).serve(0, refuse)

    async with await scene.client.connect(SocketAddress(app.host.ip, app.port)) as stream:
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)

    assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("name", ["near", "server", "plain"])
@in_scene
async def test_a_reset_of_the_client_is_a_reset_for_the_server(scene: Scene, name: str) -> None:
    failures: list[BaseException | None] = []
    done = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        await stream.send_all(b"x")
        try:
            await stream.receive_some(1)
        except trio.BrokenResourceError as error:
            failures.append(error.__cause__)
        done.set()

    app = await scene.pod(name).serve(0, listen)

    stream = await scene.client.connect(SocketAddress(app.host.ip, app.port))
    assert await stream.receive_some(1) == b"x"
    reset(stream)
    await done.wait()

    assert [type(failure) for failure in failures] == [ConnectionResetError]


# ------------------------------------------------------------------ policies


def allow(name: str, *principals: str) -> Authorization:
    match = Match(principals=[resources.text_match(one) for one in principals])
    return resources.policy(name, match, scope="WORKLOAD_SELECTOR")


def deny_port(name: str, port: int) -> Authorization:
    return resources.policy(name, Match(destination_ports=[port]), deny=True, scope="WORKLOAD_SELECTOR")


CLIENTS_PRINCIPAL = "cluster.local/ns/default/sa/client"
REJECTED = "connection closed due to policy rejection: "


@in_scene
async def test_a_policy_that_allows_the_caller_lets_it_pass_and_nobody_else(scene: Scene) -> None:
    target = SocketAddress(scene.server.ip, DOUBLE)
    async with attached(scene.lab, allow("only-client", CLIENTS_PRINCIPAL), scene.server):
        assert await fate(scene.client, target) == HELLO + HELLO

        async with scene.lines(scene.near, scene.server) as lines:
            assert await fate(scene.near, target) == "cut"

    outbound, inbound = lines
    assert inbound.level == "error"
    assert inbound.get("error") == f"{REJECTED}allow policies exist, but none allowed"
    assert inbound.get("src.identity") == str(scene.near.identity)
    assert outbound.get("error") == "http status: 401 Unauthorized"


@in_scene
async def test_plain_text_without_an_identity_is_refused_where_one_is_wanted(scene: Scene) -> None:
    target = SocketAddress(scene.server.ip, DOUBLE)
    async with (
        attached(scene.lab, allow("only-client", CLIENTS_PRINCIPAL), scene.server),
        scene.lines(scene.server) as lines,
    ):
        assert await fate(scene.plain, target) == "cut"

    assert [line.get("error") for line in lines] == [f"{REJECTED}allow policies exist, but none allowed"]


@pytest.mark.parametrize("name", ["client", "near", "plain"])
@in_scene
async def test_a_policy_that_denies_a_port_names_itself_in_the_log(scene: Scene, name: str) -> None:
    async with (
        attached(scene.lab, deny_port("no-whoami", WHOAMI), scene.server),
        scene.lines(scene.server) as lines,
    ):
        assert await fate(scene.pod(name), SocketAddress(scene.server.ip, WHOAMI)) == "cut"

    assert [line.get("error") for line in lines] == [
        f"{REJECTED}explicitly denied by: default/no-whoami",
    ]
    assert await fate(scene.pod(name), SocketAddress(scene.server.ip, DOUBLE)) == HELLO + HELLO


@pytest.mark.parametrize("name", ["client", "plain"])
@in_scene
async def test_a_change_of_policy_ends_open_connections(scene: Scene, name: str) -> None:
    ip = scene.server.ip
    async with (
        attached(scene.lab, deny_port("changing", 1), scene.server),
        await scene.pod(name).connect(SocketAddress(ip, ECHO)) as concerned,
        await scene.pod(name).connect(SocketAddress(ip, DOUBLE)) as other,
    ):
        for stream, answer in ((concerned, b"a"), (other, b"aa")):
            await stream.send_all(b"a")
            assert await read_exactly(stream, len(answer)) == answer

        async with scene.lines(scene.server) as lines:
            await scene.lab.push(deny_port("changing", ECHO))
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                assert await concerned.receive_some(1) == b""

        await other.send_all(b"b")
        assert await read_exactly(other, 2) == b"bb"

    assert lines[0].get("error") == "connection closed due to policy change"


@pytest.mark.parametrize("name", ["client", "plain"])
@in_scene
async def test_a_policy_attached_later_ends_open_connections_too(scene: Scene, name: str) -> None:
    async with await scene.pod(name).connect(SocketAddress(scene.server.ip, ECHO)) as stream:
        await stream.send_all(b"a")
        assert await stream.receive_some(1) == b"a"

        async with attached(scene.lab, deny_port("attached", ECHO), scene.server):
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                assert await stream.receive_some(1) == b""


# ------------------------------------------------------------------ what leads nowhere


@pytest.mark.parametrize("name", ["plain", "known"])
@in_scene
async def test_a_closed_port_outside_the_mesh_is_told(scene: Scene, name: str) -> None:
    async with scene.lines(scene.client) as lines:
        assert await fate(scene.client, SocketAddress(scene.pod(name).ip, 9)) == "cut"

    assert [line.get("error") for line in lines] == ["io error: Connection refused (os error 111)"]


@in_scene
async def test_a_closed_port_of_a_pod_is_told_on_both_sides(scene: Scene) -> None:
    async with scene.lines(scene.client, scene.server) as lines:
        assert await fate(scene.client, SocketAddress(scene.server.ip, 9)) == "cut"

    assert [line.get("error") for line in lines] == [
        "http status: 503 Service Unavailable",
        "connection failed: Connection refused (os error 111)",
    ]


@in_scene
async def test_an_unknown_network_is_told(scene: Scene) -> None:
    async with scene.lines(scene.client) as lines:
        assert await fate(scene.client, SocketAddress(IPv4Address("203.0.113.1"), 80)) == "cut"

    assert "unreachable (os error" in lines[0].get("error")


@in_scene
async def test_a_service_without_endpoints_is_told(scene: Scene) -> None:
    await scene.lab.add_service("nobody", [])

    async with scene.lines(scene.client) as lines:
        assert await fate(scene.client, scene.lab.address_of("nobody")) == "cut"

    assert lines[0].get("error").startswith("no healthy upstream: ")


@in_scene
async def test_a_service_port_that_does_not_exist_is_told(scene: Scene) -> None:
    async with scene.lines(scene.client) as lines:
        assert await fate(scene.client, replace(scene.vip, port=4711)) == "cut"

    assert lines[0].get("error") != ""


@pytest.mark.parametrize("port", [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT])
@in_scene
async def test_a_loop_through_the_proxys_own_ports_is_refused(scene: Scene, port: int) -> None:
    async with scene.lines(scene.server) as lines:
        assert await fate(scene.plain, SocketAddress(scene.server.ip, port)) == "cut"

    assert [line.get("error") for line in lines] == ["attempted recursive call to ourselves"]


@pytest.mark.parametrize("address", ["172.30.0.1", "fd00:1e::1"])
@in_scene
async def test_a_loop_through_an_address_of_the_pod_that_nobody_knows_is_refused(
    scene: Scene, address: str
) -> None:
    near = scene.near
    with near.host.netns.inside():  # a child process starts in the namespace of the thread that forks it
        subprocess.run(f"ip addr add {address} dev lo".split(), check=True)  # noqa: ASYNC221  a moment
    async with scene.lines(near) as lines:
        assert await fate(near, SocketAddress(ip_address(address), OUTBOUND_PORT)) == "cut"

    assert [line.get("error") for line in lines] == ["attempted recursive call to ourselves"]


@pytest.mark.parametrize("port", [OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT])
@in_scene
async def test_a_loop_through_a_tunnel_is_refused(scene: Scene, port: int) -> None:
    async with scene.lines(scene.server) as lines, dial(scene) as peer:
        answer = await peer.connect(SocketAddress(scene.server.ip, port))

    assert answer.status == 503
    assert [line.get("error") for line in lines] == ["attempted recursive call to ourselves"]


# ------------------------------------------------------------------ waypoints and gateways


async def greet(stream: trio.SocketStream) -> None:
    """The waypoint of ztunnel's tests: speaks first, then echoes."""
    await stream.send_all(b"waypoint\n")
    await apps.echo(stream)


def identity_of(pod: Pod) -> WorkloadCertificate:
    return certificate_of(pod.lab.authority, pod.identity)


@asynccontextmanager
async def waypoint(scene: Scene) -> AsyncGenerator[HboneServer, None]:
    """A waypoint on the pod `gateway`, for the body's time."""
    async with trio.open_nursery() as nursery:
        server = HboneServer(scene.gateway.host, identity_of(scene.gateway), answering(greet))
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel(reason="the test is over")


def behind(reference: str, port: int = HBONE_PORT) -> GatewayAddress:
    return resources.gateway(reference, port)


WAYPOINT_SERVICE = "default/gate.default.svc.cluster.local"


async def name_the_gateway(scene: Scene, ports: dict[int, int]) -> None:
    """Give the gateway a service of its own."""
    await scene.lab.add_service("gate", [scene.gateway], ports=ports)


@pytest.mark.parametrize(
    "by_name",
    [
        pytest.param(False, id="workload_waypoint"),
        pytest.param(True, id="service_waypoint_workload_hostname"),
    ],
)
@in_scene
async def test_a_workloads_waypoint_gets_what_is_for_it(scene: Scene, by_name: bool) -> None:
    await name_the_gateway(scene, {HBONE_PORT: HBONE_PORT})
    reference = WAYPOINT_SERVICE if by_name else str(scene.gateway.ip)

    def change(workload: Workload) -> None:
        workload.waypoint.CopyFrom(behind(reference))

    async with (
        waypoint(scene) as server,
        changed(scene.lab, scene.server, change),
        scene.lines(scene.client) as lines,
    ):
        answer = await exchange(scene.client, SocketAddress(scene.server.ip, DOUBLE))

    assert answer == b"waypoint\n" + HELLO
    [line] = lines
    assert line.get("dst.workload") == "gateway"
    assert line.get("dst.addr") == f"{scene.gateway.ip}:{HBONE_PORT}"
    assert line.get("dst.hbone_addr") == f"{scene.server.ip}:{DOUBLE}"
    assert line.get("src.identity") == str(scene.client.identity)
    assert line.get("dst.identity") == str(scene.gateway.identity)
    assert (line.get("bytes_sent"), line.get("bytes_recv")) == ("11", "20")
    [connect] = server.connects
    assert connect.authority == f"{scene.server.ip}:{DOUBLE}"
    assert connect.identity == scene.client.identity
    assert connect.client.ip == scene.client.ip
    assert str(scene.client.ip) in connect.headers["forwarded"][0]


@pytest.mark.parametrize(
    "by_name",
    [pytest.param(False, id="service_waypoint"), pytest.param(True, id="service_waypoint_hostname")],
)
@in_scene
async def test_a_services_waypoint_gets_what_is_for_it(scene: Scene, by_name: bool) -> None:
    await name_the_gateway(scene, {HBONE_PORT: HBONE_PORT})
    reference = WAYPOINT_SERVICE if by_name else str(scene.gateway.ip)

    def change(service: Service) -> None:
        service.waypoint.CopyFrom(behind(reference))

    await scene.lab.add_service("guarded", [], change=change)
    target = scene.lab.address_of("guarded")

    async with waypoint(scene) as server, scene.lines(scene.client) as lines:
        answer = await exchange(scene.client, target)

    assert answer == b"waypoint\n" + HELLO
    assert lines[0].get("dst.hbone_addr") == str(target)
    assert lines[0].get("dst.identity") == str(scene.gateway.identity)
    assert [connect.authority for connect in server.connects] == [str(target)]


@in_scene
async def test_a_waypoint_that_does_not_exist_is_told(scene: Scene) -> None:
    def change(service: Service) -> None:
        service.waypoint.CopyFrom(behind("default/nobody.default.svc.cluster.local"))

    await scene.lab.add_service("lost", [scene.server], change=change)

    async with scene.lines(scene.client) as lines:
        assert await fate(scene.client, scene.lab.address_of("lost")) == "cut"

    assert lines[0].get("error").startswith("unknown waypoint: ")


REMOTE = "remote.default.svc.cluster.local"


@pytest.mark.parametrize(
    "by_name", [pytest.param(False, id="double_hbone1"), pytest.param(True, id="double_hbone2")]
)
@in_scene
async def test_another_networks_workload_is_reached_by_a_tunnel_in_a_tunnel(
    scene: Scene, by_name: bool
) -> None:
    await name_the_gateway(scene, {15009: HBONE_PORT})
    far_away = resources.workload(
        "remote", uid="remote//Pod/default/remote", services={f"default/{REMOTE}": {DOUBLE: DOUBLE}}
    )
    far_away.network = "remote"
    far_away.network_gateway.CopyFrom(
        behind(WAYPOINT_SERVICE, 15009) if by_name else behind(f"remote/{scene.gateway.ip}")
    )

    def in_remote(workload: Workload) -> None:
        if not by_name:
            workload.network = "remote"

    def trust(service: Service) -> None:
        service.subject_alt_names.append(str(scene.server.identity))

    await scene.lab.add_service("remote", [], ports={DOUBLE: DOUBLE}, change=trust)
    async with (
        changed(scene.lab, scene.gateway, in_remote),
        told(scene.lab, far_away),
        east_west_gateway(scene) as gateway,
        scene.lines(scene.client, scene.server) as lines,
    ):
        answer = await exchange(scene.client, scene.lab.address_of("remote", DOUBLE))

    assert answer == HELLO + HELLO
    outbound, inbound = lines
    authority = f"{REMOTE}:{DOUBLE}"
    assert outbound.get("dst.addr") == f"{scene.gateway.ip}:{HBONE_PORT}"
    assert outbound.get("dst.hbone_addr") == authority
    assert outbound.get("dst.workload") == "server"  # from the inner peer's baggage
    assert outbound.get("dst.identity") == str(scene.server.identity)
    assert inbound.get("src.identity") == str(scene.client.identity)
    assert inbound.get("dst.hbone_addr") == authority
    assert [(one.authority, one.identity) for one in gateway.connects] == [(authority, scene.client.identity)]


@asynccontextmanager
async def east_west_gateway(scene: Scene) -> AsyncGenerator[HboneServer, None]:
    """On the pod `gateway`: ends the outer tunnel and hands what is inside to the server's proxy."""
    async with trio.open_nursery() as nursery:
        inner = forwarding(scene.gateway.host, SocketAddress(scene.server.ip, HBONE_PORT))
        server = HboneServer(scene.gateway.host, identity_of(scene.gateway), inner)
        await nursery.start(server.run)
        yield server
        nursery.cancel_scope.cancel(reason="the test is over")


# ------------------------------------------------------------------ application tunnels


async def read_proxy_header(stream: trio.SocketStream) -> bytes:
    """A whole PROXY header, byte by byte."""
    received = b""
    while (wanted := header_bytes(received)) is None or len(received) < wanted:
        received += await read_exactly(stream, 1)
    return received


@in_scene
async def test_an_application_tunnel_tells_who_calls_and_where_to(scene: Scene) -> None:
    headers: list[bytes] = []

    async def listen(stream: trio.SocketStream) -> None:
        headers.append(await read_proxy_header(stream))
        await double(stream)

    app = await scene.server.serve(0, listen)

    def change(workload: Workload) -> None:
        workload.application_tunnel.CopyFrom(
            ApplicationTunnel(protocol=ApplicationTunnel.Protocol.PROXY, port=app.port)
        )

    target = SocketAddress(scene.server.ip, DOUBLE)
    async with changed(scene.lab, scene.server, change):
        assert await exchange(scene.client, target) == HELLO + HELLO

    [header] = map(parse_header, headers)
    assert header.source is not None and header.source.ip == scene.client.ip
    assert header.destination == target
    assert header.identity == str(scene.client.identity)


@pytest.mark.parametrize(
    "is_proxy",
    [
        pytest.param(False, id="sandwich_waypoint_plain"),
        pytest.param(True, id="sandwich_waypoint_proxy_protocol"),
    ],
)
@in_scene
async def test_a_captured_waypoint_gets_its_traffic_from_its_own_proxy(scene: Scene, is_proxy: bool) -> None:
    lab, target = scene.lab, SocketAddress(scene.server.ip, DOUBLE)
    meant: list[SocketAddress | None] = []

    async def carry_on(stream: trio.SocketStream) -> None:
        onward: SocketAddress | None = target
        if is_proxy:
            onward = parse_header(await read_proxy_header(stream)).destination
            meant.append(onward)
        assert onward is not None
        answer = await exchange(scene.near, onward, await read_all(stream))
        await stream.send_all(b"sandwich " + answer)

    app = await scene.near.serve(15088 if is_proxy else 4080, carry_on)

    def has_tunnel(workload: Workload) -> None:
        if is_proxy:
            workload.application_tunnel.CopyFrom(
                ApplicationTunnel(protocol=ApplicationTunnel.Protocol.PROXY, port=app.port)
            )

    def has_waypoint(workload: Workload) -> None:
        workload.waypoint.CopyFrom(behind(str(scene.near.ip)))

    dialled = target if is_proxy else replace(target, port=app.port)
    async with changed(lab, scene.near, has_tunnel), changed(lab, scene.server, has_waypoint):
        assert await exchange(scene.client, dialled) == b"sandwich " + HELLO + HELLO

    assert meant == ([target] if is_proxy else [])


# ------------------------------------------------------------------ a peer made by hand


@asynccontextmanager
async def dial(scene: Scene, who: WorkloadCertificate | None = None) -> AsyncGenerator[Peer, None]:
    """A tunnel from outside the mesh to the server's pod, with the client's certificate or another one."""
    target = SocketAddress(scene.server.ip, HBONE_PORT)
    certificate = who or certificate_of(scene.lab.authority, scene.client.identity)
    async with open_tunnel(scene.plain.host, target, certificate, [scene.server.identity]) as peer:
        yield peer


@in_scene
async def test_a_peer_with_a_certificate_is_carried(scene: Scene) -> None:
    async with dial(scene) as peer:
        answer = await peer.connect(SocketAddress(scene.server.ip, DOUBLE))
        async with peer.converse(answer) as stream:
            await stream.send_all(HELLO)
            await stream.send_eof()

            assert (answer.status, await read_all(stream)) == (200, HELLO + HELLO)


@in_scene
async def test_a_services_name_is_an_authority(scene: Scene) -> None:  # test_svc_hostname_port
    async with dial(scene) as peer:
        answer = await peer.connect(HostPort("server.default.svc.cluster.local", VIP_PORT))

    assert answer.status == 200


@in_scene
async def test_a_port_the_service_calls_by_name_is_the_workloads(
    scene: Scene,
) -> None:  # test_svc_hostname_named_port
    await scene.lab.add_service("named", [], ports={VIP_PORT: 0})

    def change(workload: Workload) -> None:
        ports = PortList(ports=[Port(service_port=VIP_PORT, target_port=DOUBLE)])
        workload.services["default/named.default.svc.cluster.local"].CopyFrom(ports)

    async with changed(scene.lab, scene.server, change), dial(scene) as peer:
        answer = await peer.connect(HostPort("named.default.svc.cluster.local", VIP_PORT))
        async with peer.converse(answer) as stream:
            await stream.send_all(HELLO)
            await stream.send_eof()

            assert await read_all(stream) == HELLO + HELLO


@pytest.mark.parametrize(
    ("authority", "status", "error"),
    [
        pytest.param("client", 400, "ip mismatch: {server} != {client}", id="hbone_ip_mismatch"),
        ("absent.default.svc.cluster.local", 503, "no service or workload for hostname: {authority}"),
        (
            "server.default.svc.cluster.local",
            503,
            "requested service {authority}:9 found, but cannot resolve port",
        ),
    ],
)
@in_scene
async def test_an_authority_that_is_not_the_servers_is_refused(
    scene: Scene, authority: str, status: int, error: str
) -> None:
    target: HboneTarget = (
        SocketAddress(scene.client.ip, DOUBLE) if authority == "client" else HostPort(authority, 9)
    )
    async with scene.lines(scene.server) as lines, dial(scene) as peer:
        answer = await peer.connect(target)

    assert answer.status == status
    words = {"server": scene.server.ip, "client": scene.client.ip, "authority": authority}
    assert [line.get("error") for line in lines] == [error.format(**words)]


@in_scene
async def test_a_certificate_without_permission_gets_401(scene: Scene) -> None:  # test_policy
    async with (
        attached(scene.lab, allow("somebody", "cluster.local/ns/default/sa/somebody"), scene.server),
        scene.lines(scene.server) as lines,
        dial(scene) as peer,
    ):
        answer = await peer.connect(SocketAddress(scene.server.ip, DOUBLE))

    assert answer.status == 401
    assert [line.get("error") for line in lines] == [f"{REJECTED}allow policies exist, but none allowed"]


@pytest.mark.parametrize(
    ("issued_by", "trust_domain", "error"),
    [
        ("a stranger", "cluster.local", "tls handshake error: "),
        pytest.param(
            "our own", "clusterset.local", "tls handshake error: ", id="trust_domain_mismatch_rejected"
        ),
    ],
)
@in_scene
async def test_a_foreign_certificate_is_refused(
    scene: Scene, issued_by: str, trust_domain: str, error: str
) -> None:
    issuer = Authority("strangers") if issued_by == "a stranger" else scene.lab.authority
    identity = SpiffeId(trust_domain, "default", "client")
    leaf = issuer.leaf(str(identity))
    chain = [leaf.certificate_pem, scene.lab.authority.root_pem]
    certificate = parse_chain(identity, chain, leaf.key_pem.encode(), check_identity=True)

    async with scene.lines(scene.server) as lines:
        with pytest.RaisesGroup(H2Failed, flatten_subgroups=True):
            async with dial(scene, certificate) as peer:
                await peer.connect(SocketAddress(scene.server.ip, DOUBLE))

    assert lines[0].get("error").startswith(error)
    assert await exchange(scene.client, scene.vip) == HELLO + HELLO


@in_scene
async def test_a_peer_without_a_certificate_is_refused(scene: Scene) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with scene.lines(scene.server) as lines:
        stream = await scene.plain.connect(SocketAddress(scene.server.ip, HBONE_PORT))
        async with trio.SSLStream(stream, context) as tls:
            with pytest.raises(trio.BrokenResourceError):
                await tls.receive_some(1)

    assert lines[0].get("error").startswith("tls handshake error: ")


@in_scene
async def test_a_client_of_another_trust_domain_is_cut_off(scene: Scene) -> None:
    def change(workload: Workload) -> None:
        workload.trust_domain = "clusterset.local"

    async with changed(scene.lab, scene.client, change), scene.lines(scene.client, scene.server) as lines:
        assert await fate(scene.client, SocketAddress(scene.server.ip, DOUBLE)) == "cut"

    assert all(line.get("error") for line in lines)
    assert await exchange(scene.client, scene.vip) == HELLO + HELLO


# ------------------------------------------------------------------ garbage

CUT, REFUSED = "cut", "refused"
BAD_REQUEST = b"HTTP/1.1 400"
PORTS = (
    OUTBOUND_PORT,
    INBOUND_PLAINTEXT_PORT,
    HBONE_PORT,
    SOCKS5_PORT,
    ADMIN_PORT,
    STATS_PORT,
    READINESS_PORT,
)
# who, where to, and what becomes of it on each of PORTS: malicious_calls_inpod
CALLS: Sequence[tuple[str, str, Sequence[str | bytes]]] = [
    ("client", "node", (CUT, CUT, CUT, CUT, CUT, BAD_REQUEST, BAD_REQUEST)),
    ("client", "own", (CUT, CUT, CUT, REFUSED, REFUSED, REFUSED, REFUSED)),
    ("client", "loopback", (CUT, CUT, CUT, REFUSED, REFUSED, REFUSED, REFUSED)),
    ("client", "loopback6", (CUT, CUT, CUT, REFUSED, REFUSED, REFUSED, REFUSED)),
    ("plain", "node", (REFUSED, REFUSED, CUT, REFUSED, REFUSED, BAD_REQUEST, BAD_REQUEST)),
    ("plain", "pod", (CUT,) * 7),
]


@pytest.mark.parametrize(("who", "where", "expected"), CALLS, ids=[f"{call[0]}-{call[1]}" for call in CALLS])
@in_scene
async def test_garbage_harms_nobody(
    scene: Scene, who: str, where: str, expected: Sequence[str | bytes]
) -> None:
    assert scene.client.node is not None
    places: dict[str, IPAddress] = {
        "node": scene.client.node.host.ip,
        "own": scene.client.ip,
        "loopback": IPv4Address("127.0.0.1"),
        "loopback6": IPv6Address("::1"),
        "pod": scene.client.ip,
    }

    found = [await fate(scene.pod(who), SocketAddress(places[where], port), GARBAGE) for port in PORTS]

    assert [one[: len(BAD_REQUEST)] if isinstance(one, bytes) else one for one in found] == list(expected)
    assert await exchange(scene.client, scene.vip) == HELLO + HELLO


@pytest.mark.parametrize("ending", ["reset", "silence"])
@in_scene
async def test_a_peer_that_says_nothing_on_15008_holds_nobody_up(scene: Scene, ending: str) -> None:
    stream = await scene.plain.connect(SocketAddress(scene.server.ip, HBONE_PORT))
    if ending == "reset":
        reset(stream)

    assert await exchange(scene.client, scene.vip) == HELLO + HELLO
    await stream.aclose()


@in_scene
async def test_metrics_are_had_over_hbone(scene: Scene) -> None:  # test_hbone_metrics_access
    node = scene.lab.nodes["node-2"]
    own = resources.workload(
        "ztunnel-node-2",
        namespace="istio-system",
        service_account="ztunnel",
        addresses=[str(node.host.ip)],
        node="node-2",
    )
    target = SocketAddress(node.host.ip, STATS_PORT)
    async with told(scene.lab, own), scene.lines(scene.server) as lines:
        with trio.fail_after(5):
            async with await scene.client.connect(target) as stream:
                response = await http.fetch(stream, "/metrics")

    assert response.status == 200
    assert "istio_build" in response.text
    [line] = lines
    assert line.get("dst.addr") == f"{node.host.ip}:{HBONE_PORT}"
    assert line.get("dst.hbone_addr") == str(target)
    assert line.get("dst.identity") == "spiffe://cluster.local/ns/istio-system/sa/ztunnel"


@in_scene
async def test_certificates_are_fetched_for_this_nodes_workloads_only(
    scene: Scene,
) -> None:  # test_prefetch_forget_certs
    ca = scene.lab.istiod.ca
    here = resources.workload("extra-here", addresses=["10.88.99.1"], node="node-1")
    there = resources.workload("extra-there", addresses=["10.88.99.2"], node="node-9")

    async with told(scene.lab, here, there):
        await until(lambda: ca.count("spiffe://cluster.local/ns/default/sa/extra-here") == 1)

    assert ca.count("spiffe://cluster.local/ns/default/sa/extra-there") == 0
