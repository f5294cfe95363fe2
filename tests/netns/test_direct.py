"""The whole process in dedicated mode on loopback, asked through SOCKS5 (ztunnel tests/direct.rs).

Its ports are fixed, so each test has a network namespace with nothing in it but `lo`. One process is both
ends: its workload's identity is everybody's.
"""

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

import dns.message
import dns.query
import dns.rdatatype
import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.config.mesh_file import MESH_FILE
from ztunnel_trio.control import grpc
from ztunnel_trio.facts.network import DNS_PORT, SOCKS5_PORT, STATS_PORT
from ztunnel_trio.lab.apps import App, echo, run_app
from ztunnel_trio.lab.hosts import Host, new_netns
from ztunnel_trio.lab.netlink import Links
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.proxy_process import ProxyFailed, ProxyProcess, default_command
from ztunnel_trio.lab.spire_agent import WORKLOAD_SOCKET, AttestedCaller, SpireAgent
from ztunnel_trio.model.address import IPAddress, SocketAddress

SOURCE: Final = IPv4Address("127.0.0.2")
HBONE: Final = IPv4Address("127.0.0.3")
PLAIN: Final = IPv4Address("127.0.0.4")
VIP: Final = IPv4Address("127.10.0.1")
NAMED_VIP: Final = IPv4Address("127.10.0.2")
LOCALHOST: Final = IPv4Address("127.0.0.1")
TEXT: Final = b"hello world"

# What ends with the process has no "unstable" in its help (ztunnel tests/direct.rs).
STABLE: Final = frozenset(
    {
        "istio_build",
        "istio_tcp_connections_closed",
        "istio_tcp_connections_opened",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
        "process_max_fds",
        "process_open_fds",
    }
)


def mesh(port: int) -> str:
    """The mesh of the reference's tests; services lead to `port`."""
    return f"""
workloads:
  - {{uid: "cluster1//v1/Pod/default/local-source", name: local-source, namespace: default,
      serviceAccount: default, trustDomain: cluster.local, workloadIps: ["{SOURCE}"], protocol: TCP,
      node: local, services: {{}}}}
  - {{uid: "cluster1//v1/Pod/default/local-hbone", name: local-hbone, namespace: default,
      serviceAccount: default, trustDomain: cluster.local, workloadIps: ["{HBONE}"], protocol: HBONE,
      node: local, services: {{"default/local-vip.default.svc.cluster.local": {{80: {port}}}}}}}
  - {{uid: "cluster1//v1/Pod/default/local-tcp", name: local-tcp, namespace: default,
      serviceAccount: default, trustDomain: cluster.local, workloadIps: ["{PLAIN}"], protocol: TCP,
      node: local, services: {{}}}}
  - {{uid: "cluster1//v1/Pod/default/local-hostname", name: local-hostname, namespace: default,
      serviceAccount: default, trustDomain: cluster.local, workloadIps: [], hostname: localhost,
      protocol: TCP, node: local,
      services: {{"default/local-hostname.default.svc.cluster.local": {{80: {port}}}}}}}
services:
  - {{name: local-vip, namespace: default, hostname: local-vip.default.svc.cluster.local,
      vips: ["/{VIP}"], ports: {{80: {port}}}}}
  - {{name: local-hostname, namespace: default, hostname: local-hostname.default.svc.cluster.local,
      vips: ["/{NAMED_VIP}"], ports: {{80: {port}}}}}
"""


@dataclass(eq=False)
class Direct:
    """The process, its namespace, and an application that echoes."""

    host: Host
    process: ProxyProcess
    app: App

    def target(self, ip: IPAddress) -> SocketAddress:
        """Where the application, or a service that leads to it, is reached."""
        return SocketAddress(ip, 80 if ip in (VIP, NAMED_VIP) else self.app.port)

    async def socks(self, ip: IPAddress | str) -> trio.SocketStream:
        """A connection through port 15080, to an address or a name."""
        stream = await self.host.connect(SocketAddress(LOCALHOST, SOCKS5_PORT), source=SOURCE)
        await stream.send_all(b"\5\1\0")
        assert await receive(stream, 2) == b"\5\0"
        if isinstance(ip, str):
            where = b"\3" + bytes([len(ip)]) + ip.encode() + (80).to_bytes(2, "big")
        else:
            where = b"\1" + ip.packed + self.target(ip).port.to_bytes(2, "big")
        await stream.send_all(b"\5\1\0" + where)
        assert await receive(stream, 10) == b"\5\0\0\1\0\0\0\0\0\0"
        return stream

    async def ask(self, ip: IPAddress | str) -> None:
        """Eleven bytes there and back, then the end."""
        async with await self.socks(ip) as stream:
            await stream.send_all(TEXT)
            assert await receive(stream, len(TEXT)) == TEXT
            await stream.send_eof()
            assert await stream.receive_some() == b""

    async def samples(self, name: str) -> list[float]:
        """The values of a metric, one a series."""
        text = await self.process.metrics()
        return [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.match(re.escape(name) + r"[ {]", line)
        ]

    async def wait_for(self, name: str, total: float) -> None:
        """Wait until a metric's series add up to this."""
        with trio.fail_after(5):
            while sum(await self.samples(name)) != total:  # noqa: ASYNC110  it is asked, it cannot tell
                await trio.sleep(0.02)

    async def refuses(self) -> None:
        """Wait until nobody listens for SOCKS5 any more."""
        with trio.fail_after(10), contextlib.suppress(ConnectionRefusedError):
            while True:
                await (await self.host.connect(SocketAddress(LOCALHOST, SOCKS5_PORT))).aclose()
                await trio.sleep(0.02)

    async def ended(self, *, seconds: float) -> int | None:
        """Wait for the process's end, at most so long; its exit code."""
        with trio.fail_after(seconds):
            while self.process.is_running:  # noqa: ASYNC110  its end raises no event
                await trio.sleep(0.02)
        return self.process.returncode


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    """Exactly so many bytes."""
    got = b""
    while len(got) < count:
        more = await stream.receive_some(count - len(got))
        assert more, f"the end after {got!r}"
        got += more
    return got


def raise_loopback(host: Host) -> None:
    """In a thread of its own: pyroute2 has its own event loop, which must not be Trio's."""
    with host.netns.inside(), Links() as links:
        links.up("lo")


@asynccontextmanager
async def direct(
    place: Path,
    *,
    taken: int | None = None,
    is_waited_for: bool = True,
    is_mesh_text: bool = False,
    **settings: str,
) -> AsyncGenerator[Direct, None]:
    """Start the process with these settings; `taken` is a port somebody else has. The mesh is a file, or the
    text of a setting.
    """
    host = Host("direct", new_netns(), LOCALHOST, IPv6Address("::1"))
    squatter: socket.socket | None = None
    process: ProxyProcess | None = None
    try:
        await trio.to_thread.run_sync(raise_loopback, host)
        if taken is not None:
            squatter = host.listener(taken)
        async with trio.open_nursery() as nursery:
            app: App = await nursery.start(run_app, host, 0, echo)
            file = place / "mesh.yaml"
            file.write_text(mesh(app.port))
            environment = {
                "PROXY_MODE": "dedicated",
                "PROXY_WORKLOAD_INFO": "default/local-source/default",
                "FAKE_CA": "true",
                "XDS_ADDRESS": "",
                **({"LOCAL_XDS": mesh(app.port)} if is_mesh_text else {"LOCAL_XDS_PATH": str(file)}),
                "UNSTABLE_ENABLE_SOCKS5": "true",
                "ISTIO_META_DNS_CAPTURE": "true",
                **settings,
            }
            process = ProxyProcess(host, place, command=default_command(), environment=environment)
            process.start()
            if is_waited_for:
                await process.wait_ready()
            try:
                yield Direct(host, process, app)
            except BaseException:
                print("\n".join(process.log.raw()[-40:]))  # noqa: T201
                raise
            nursery.cancel_scope.cancel(reason="the test is over")
    finally:
        if process is not None:
            process.kill()
        if squatter is not None:
            squatter.close()
        host.close()


@trio_test
async def test_shutdown_lifecycle(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        with trio.fail_after(5):
            assert await it.process.stop() == 0
        lines = it.process.log.lines()
        assert "received signal SIGTERM, starting shutdown" in [line.message for line in lines]
        ended = {line.get("component") for line in lines if line.message == "shutdown complete"}
        assert ended >= {"inbound", "inbound passthrough", "outbound", "socks5"}


@trio_test
async def test_how_long_the_start_took_is_counted_from_the_process_start(tmp_path: Path) -> None:
    settings = tmp_path / MESH_FILE
    settings.parent.mkdir(parents=True)
    os.mkfifo(settings)
    async with direct(tmp_path, is_waited_for=False) as it:
        with trio.fail_after(20):
            held = await trio.to_thread.run_sync(settings.open, "w", abandon_on_cancel=True)
        with held:  # it waits for the rest of its settings
            began = trio.current_time()
            await trio.sleep(1.2)
            held.write("{}")
            lasted = trio.current_time() - began
        with trio.fail_after(20):
            await it.process.wait_ready()
            line = await it.process.log.wait_text("marking server ready")
        took = re.search(r"complete \(([\d.]+)s\)", line)
        assert took is not None, line
        assert float(took[1]) >= lasted


@trio_test
async def test_a_mesh_given_as_text_is_the_mesh(tmp_path: Path) -> None:
    async with direct(tmp_path, is_mesh_text=True) as it:
        await it.ask(VIP)
        await it.ask(PLAIN)

        dump = json.loads((await it.process.admin("/config_dump")).text)
        assert [service["hostname"] for service in dump["services"]] == [
            "local-hostname.default.svc.cluster.local",
            "local-vip.default.svc.cluster.local",
        ]
        assert dump["staticConfig"]["workloads"][0]["name"] == "local-source"


@trio_test
async def test_a_mesh_given_as_text_that_is_none_ends_the_start(tmp_path: Path) -> None:
    async with direct(tmp_path, is_mesh_text=True, is_waited_for=False, LOCAL_XDS="policies: 7") as it:
        assert await it.ended(seconds=10) == 1
        assert it.process.log.raw()[-2] == "Error: LOCAL_XDS: policies: Expected `array`, got `int`, got 7"


@trio_test
async def test_certificates_of_the_workload_api_serve_a_dedicated_workload(tmp_path: Path) -> None:
    agent = SpireAgent(Authority())
    agent.register(AttestedCaller(), "spiffe://cluster.local/ns/default/sa/default")
    async with grpc.open_control_loop(), agent.running(tmp_path):
        path = f"unix://{tmp_path / WORKLOAD_SOCKET}"
        async with direct(
            tmp_path, FAKE_CA="false", CA_PROVIDER="spiffe_workload_api", SPIFFE_ENDPOINT_SOCKET=path
        ) as it:
            await it.ask(HBONE)
            agent.rotate()
            await it.ask(HBONE)

            (shown,) = json.loads((await it.process.admin("/config_dump")).text)["certificates"]
            assert shown["identity"] == "spiffe://cluster.local/ns/default/sa/default"
            assert shown["state"] == "Available"


@trio_test
async def test_quit_lifecycle(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        answer = await it.process.admin("/quitquitquit", method="POST")
        assert (answer.status, answer.text) == (200, "shutdown now\n")
        assert await it.ended(seconds=5) == 0


@pytest.mark.parametrize(
    ("component", "port"), [("inbound", 15008), ("inbound_plaintext", 15006), ("outbound", 15001)]
)
def test_conflicting_bind_error(component: str, port: int, tmp_path: Path) -> None:
    @trio_test
    async def main() -> None:
        async with direct(tmp_path, taken=port, is_waited_for=False) as it:
            with trio.fail_after(10), pytest.raises(ProxyFailed):
                await it.process.wait_ready()
            assert it.process.returncode not in (0, None)
            text = "\n".join(it.process.log.raw())
            assert f"failed to bind to address [::]:{port}: Address already in use (os error 98)" in text

    main()


@pytest.mark.parametrize("port", [15000, 15020, 15021])
def test_conflicting_bind_error_of_a_server_of_ours(port: int, tmp_path: Path) -> None:
    @trio_test
    async def main() -> None:
        async with direct(tmp_path, taken=port, is_waited_for=False) as it:
            assert await it.ended(seconds=10) != 0
            assert "Address already in use (os error 98)" in "\n".join(it.process.log.raw())

    main()


@trio_test
async def test_shutdown_drain(tmp_path: Path) -> None:
    async with (
        direct(tmp_path, CONNECTION_TERMINATION_DEADLINE="60s") as it,
        await it.socks(HBONE) as stream,
        trio.open_nursery() as nursery,
    ):
        await stream.send_all(TEXT)
        assert await receive(stream, len(TEXT)) == TEXT
        nursery.start_soon(it.process.stop)
        await it.refuses()
        assert it.process.is_running
        await stream.send_all(TEXT)
        assert await receive(stream, len(TEXT)) == TEXT
        await stream.aclose()
        assert await it.ended(seconds=5) == 0


@trio_test
async def test_shutdown_forced_drain(tmp_path: Path) -> None:
    async with direct(tmp_path, CONNECTION_TERMINATION_DEADLINE="1s") as it:
        async with await it.socks(HBONE) as stream:
            await stream.send_all(TEXT)
            assert await receive(stream, len(TEXT)) == TEXT
            with trio.fail_after(4):
                assert await it.process.stop() == 0
        lines = it.process.log.access()
        assert {line.get("direction") for line in lines} == {"outbound", "inbound"}
        assert {line.get("error") for line in lines} == {"connection closed due to connection drain"}
        warned = [
            line.get("component")
            for line in it.process.log.lines()
            if line.message.startswith("drain duration expired with pending connections")
        ]
        assert sorted(warned) == ["inbound", "socks5"]


@trio_test
async def test_requests(tmp_path: Path) -> None:
    """hbone, tcp, vip, hostname, on-demand dns, bytes: one process serves them one after the other."""
    async with direct(tmp_path) as it:
        for ip, dialled in ((HBONE, HBONE), (PLAIN, PLAIN), (VIP, HBONE), (NAMED_VIP, LOCALHOST)):
            mark = it.process.log.mark()
            await it.ask(ip)
            (line,) = await it.process.log.wait_access(mark, {"direction": "outbound"})
            assert line.get("dst.addr").partition(":")[0] == str(dialled)
            assert line.get("error") == ""
            assert (line.get("bytes_sent"), line.get("bytes_recv")) == ("11", "11")
        for name in ("process_open_fds", "process_max_fds"):
            (value,) = await it.samples(name)
            assert value > 0


@trio_test
async def test_requests_by_name(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        await it.ask("local-vip.default.svc.cluster.local")


@trio_test
async def test_on_demand_dns_request(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        await it.ask(NAMED_VIP)
        await it.ask(NAMED_VIP)
        assert await it.samples("istio_on_demand_dns_total") == [2]


@trio_test
async def test_stats_exist(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        await it.ask(HBONE)
        text = (await it.process.get(STATS_PORT, "/metrics")).text
        assert "istio_build{" in text
        helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
        stable = {name for name, words in helps.items() if "unstable" not in words}
        ours = {name for name in stable if name.startswith(("istio_", "workload_manager_"))}
        assert ours <= STABLE
        assert {"istio_build", "istio_tcp_connections_opened", "istio_tcp_received_bytes"} <= ours
        assert text.endswith("# EOF\n")


@trio_test
async def test_tcp_connections_metrics(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        async with await it.socks(PLAIN) as stream:
            await stream.send_all(TEXT)
            assert await receive(stream, len(TEXT)) == TEXT
            await it.wait_for("istio_tcp_connections_opened_total", 1)
            assert sum(await it.samples("istio_tcp_connections_closed_total")) == 0
            await stream.send_eof()
            assert await stream.receive_some() == b""
        await it.wait_for("istio_tcp_connections_closed_total", 1)
        await it.wait_for("istio_tcp_connections_opened_total", 1)


@trio_test
async def test_tcp_bytes_metrics(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        await it.ask(PLAIN)
        await it.wait_for("istio_tcp_received_bytes_total", len(TEXT))
        await it.wait_for("istio_tcp_sent_bytes_total", len(TEXT))


@trio_test
async def test_dns_metrics(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        sock = it.host.make_socket(kind=socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(5)
            query = dns.message.make_query("local-vip.default.svc.cluster.local.", dns.rdatatype.A)
            sock.sendto(query.to_wire(), (str(LOCALHOST), DNS_PORT))
            answer = dns.message.from_wire(await trio.to_thread.run_sync(sock.recv, 4096))
        assert [str(item) for item in answer.answer[0]] == [str(VIP)]
        assert await it.samples("istio_dns_requests_total") == [1]


@trio_test
async def test_an_interrupt_ends_it_too(tmp_path: Path) -> None:
    async with direct(tmp_path) as it:
        with trio.fail_after(5):
            assert await it.process.stop(signal.SIGINT) == 0
