"""What goes wrong around a proxy is told clearly, and harms nothing else."""

import contextlib
import shutil
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.netns.shared import in_scene, share
from tests.netns.tools import HELLO, double, exchange, until
from ztunnel_trio.facts.network import ADDRESS_TYPE, HBONE_PORT
from ztunnel_trio.lab.hbone import certificate_of
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, open_lab
from ztunnel_trio.lab.pki import Authority
from ztunnel_trio.lab.proxy_process import default_command
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.netns import Netns
from ztunnel_trio.net.tls.contexts import TlsContexts
from ztunnel_trio.pb.messages.istio.workload.zds import AddWorkload, WorkloadInfo, WorkloadRequest

DOUBLE = 8080


@dataclass
class Scene:
    """Two pods on one node that talk while somebody misbehaves."""

    lab: Lab
    client: Pod
    server: Pod
    plain: Pod

    @property
    def node(self) -> Node:
        return self.lab.nodes["node-1"]

    async def check(self) -> None:
        """Everybody is still served."""
        assert await exchange(self.client, SocketAddress(self.server.ip, DOUBLE)) == HELLO + HELLO


@asynccontextmanager
async def open_scene() -> AsyncGenerator[Scene, None]:
    async with open_lab(LabSettings(nodes=("node-1",), watch_wire=False)) as lab:
        scene = Scene(
            lab,
            await lab.add_pod("client", node="node-1"),
            await lab.add_pod("server", node="node-1"),
            await lab.add_outsider("plain"),
        )
        await scene.server.serve(DOUBLE, double)
        await lab.start()
        yield scene


scene = share(open_scene)

# ------------------------------------------------------------------ the agent

INFO = WorkloadInfo(name="x", namespace="default", service_account="x")
ADD = bytes(WorkloadRequest(add=AddWorkload(uid="uid-x", workload_info=INFO)))
WITHOUT_INFO = bytes(WorkloadRequest(add=AddWorkload(uid="uid-x")))


@pytest.mark.parametrize(
    ("request_", "namespaces", "error"),
    [
        pytest.param(ADD, 0, "failure to read message : No control message", id="no descriptor"),
        pytest.param(ADD, 2, "failure to read message : Expected 1 FD, got 2", id="two descriptors"),
        pytest.param(
            b"\xff" * 4, 0, "failure to read message : failed to decode message: invalid varint", id="garbage"
        ),
    ],
)
@in_scene
async def test_a_message_that_cannot_be_read_is_refused_and_forgotten(
    scene: Scene, request_: bytes, namespaces: int, error: str
) -> None:
    before = scene.node.proxy.usage().descriptors

    found = await scene.node.agent.raw(request_, [scene.client.host.netns.fileno()] * namespaces)

    assert found == error
    assert "uid-x" not in (await scene.node.proxy.admin("/config_dump")).text
    await until(lambda: scene.node.proxy.usage().descriptors <= before)
    await scene.check()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/ns/mnt"])
@in_scene
async def test_a_descriptor_that_is_no_network_namespace_starts_nothing(scene: Scene, path: str) -> None:
    before = scene.node.proxy.usage().descriptors
    with contextlib.closing(Netns.open(path)) as wrong:
        found = await scene.node.agent.raw(ADD, [wrong.fileno()])

    assert found.startswith("failure to start proxy : ")
    assert found.endswith("Invalid argument (os error 22)")
    assert await scene.node.agent.delete("uid-x") == ""
    await until(lambda: scene.node.proxy.usage().descriptors <= before)
    await scene.check()  # last: a proxy that dials keeps a few sockets ready


@trio_test
async def test_an_agent_that_breaks_the_protocol_ends_the_proxy() -> None:
    async with open_lab(LabSettings(nodes=("node-1",), watch_wire=False)) as lab:
        client = await lab.add_pod("client", node="node-1")
        await lab.start()
        node = lab.nodes["node-1"]

        found = await node.agent.raw(WITHOUT_INFO, [client.host.netns.fileno()])

        assert found == "failure to process message : workload_info is required but not present"
        line = await node.log.wait_text("protocol mismatch error while processing stream, shutting down")
        assert "\terror\t" in line
        while node.proxy.is_running:  # noqa: ASYNC110  its end raises no event
            await trio.sleep(0.01)
        assert node.proxy.returncode == 1


# ------------------------------------------------------------------ a peer that speaks something else


@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
@in_scene
async def test_an_http_method_that_is_not_connect_is_answered_400(scene: Scene, method: str) -> None:
    context = TlsContexts().client_context(certificate_of(scene.lab.authority, scene.client.identity))
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    mark = scene.node.log.mark()
    status = ""

    stream = await scene.plain.connect(SocketAddress(scene.server.ip, HBONE_PORT))
    async with trio.SSLStream(stream, context, https_compatible=True) as tls:
        http2.initiate_connection()
        fields = [(":method", method), (":scheme", "https"), (":authority", "a"), (":path", "/")]
        http2.send_headers(1, fields, end_stream=True)
        await tls.send_all(http2.data_to_send())
        while not status:
            for event in http2.receive_data(bytes(await tls.receive_some(65536))):
                if isinstance(event, h2.events.ResponseReceived):
                    status = str(event.headers[0][1])
            await tls.send_all(http2.data_to_send())

    assert status == "400"
    [line] = await scene.node.log.wait_access(mark)
    assert line.get("error") == f"expected method CONNECT, got {method}"
    await scene.check()


# ------------------------------------------------------------------ the control plane


@in_scene
async def test_an_istiod_that_goes_away_takes_nothing_along(scene: Scene) -> None:
    mark = scene.node.log.mark()

    await scene.lab.istiod.stop()
    await scene.check()
    assert "XDS client connection error" in await scene.node.log.wait_text("xds::client", mark)
    assert await scene.node.proxy.ready() == 200
    await scene.lab.start_istiod()

    istiod = scene.lab.istiod
    await istiod.wait_for(lambda: any(ADDRESS_TYPE in stream.types for stream in istiod.live))
    await scene.lab.add_service("later", [scene.server])
    assert await exchange(scene.client, scene.lab.address_of("later")) == HELLO + HELLO


@asynccontextmanager
async def unready(**environment: str) -> AsyncGenerator[tuple[Lab, Node], None]:
    """A proxy with that environment, started and not expected to become ready."""
    settings = LabSettings(nodes=("node-1",), watch_wire=False, environment=environment)
    async with open_lab(settings) as lab:
        await lab.add_pod("client", node="node-1")
        node = lab.nodes["node-1"]
        node.start()
        yield lab, node
        if node.proxy.is_running:  # and it ends as it should, however little it got
            with trio.fail_after(5):
                assert await node.proxy.stop(signal.SIGTERM) == 0


@trio_test
async def test_an_istiod_that_cannot_be_reached_is_told_and_asked_again() -> None:
    async with unready(XDS_ADDRESS="https://10.88.0.1:1") as (_, node):
        line = await node.log.wait_text("retrying in 40ms")

        assert "XDS client connection error: gRPC connection error connecting to https://10.88.0.1:1" in line
        assert "tcp connect error: Connection refused (os error 111)" in line
        assert await node.proxy.ready() == 500


@trio_test
async def test_an_istiod_that_another_root_certified_is_told(tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    root.write_text(Authority("strangers").root_pem)
    async with unready(XDS_ROOT_CA=str(root)) as (lab, node):
        line = await node.log.wait_text("xds::client")

        assert "invalid peer certificate: " in line
        assert lab.istiod.streams == []


@trio_test
async def test_an_agent_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "zds.sock"
    async with unready(INPOD_UDS=str(path)) as (_, node):
        line = await node.log.wait_text("failed to connect to node agent")
        assert f"at {path}: No such file or directory (os error 2), retrying in" in line
        assert await node.proxy.ready() == 500

        path.symlink_to(node.agent.path)

        with trio.fail_after(20):
            await node.proxy.wait_ready()


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ("-sys_admin", "failed to set netns: Operation not permitted; is CAP_SYS_ADMIN missing?"),
        (
            "-net_admin,-net_raw",
            "failed to set socket mark: Operation not permitted; is CAP_NET_ADMIN or CAP_NET_RAW missing?",
        ),
    ],
)
@trio_test
async def test_a_proxy_without_its_privileges_does_not_start_and_says_why(
    capability: str, words: str
) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv (util-linux) here")
    command = ["setpriv", f"--bounding-set={capability}", f"--inh-caps={capability}", *default_command()]
    settings = LabSettings(nodes=("node-1",), watch_wire=False, command=command)
    async with open_lab(settings) as lab:
        node = lab.nodes["node-1"]
        node.start()
        line = await node.log.wait_text("Error: ")
        while node.proxy.is_running:  # noqa: ASYNC110  its end raises no event
            await trio.sleep(0.01)

        assert words in line
        assert node.proxy.returncode == 1
