"""Proxies that have no control plane at all: the mesh from a file, certificates from a root they share."""

import stat
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.fakes.trio_test import trio_test
from tests.netns.tools import HELLO, exchange, fate, total
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod, open_lab
from ztunnel_trio.model.address import SocketAddress

DENY = """
policies:
  - {name: nobody, namespace: default, scope: Namespace, action: Deny, dryRun: false,
     rules: [[[{destinationPorts: [8080]}]]]}
"""


@dataclass(eq=False)
class Scene:
    """Two pods on two nodes and the file both proxies read."""

    lab: Lab
    client: Pod
    server: Pod
    file: Path

    @property
    def target(self) -> SocketAddress:
        return SocketAddress(self.server.ip, 8080)

    def write(self, rest: str = "") -> None:
        """Replace the file as an editor does: by another one."""
        workloads = "\n".join(
            f'  - {{uid: "{pod.workload_uid}", name: {pod.name}, namespace: {pod.namespace},'
            f" serviceAccount: {pod.service_account}, trustDomain: cluster.local, protocol: HBONE,"
            f' workloadIps: ["{pod.ip}"], node: {pod.node.name if pod.node else ""}, services: {{}}}}'
            for pod in (self.client, self.server)
        )
        self.replace(f"workloads:\n{workloads}\n{rest}")

    def replace(self, text: str) -> None:
        draft = self.file.with_suffix(".new")
        draft.write_text(text)
        draft.replace(self.file)

    async def becomes(self, wanted: bytes | str) -> None:
        """Wait until a connection has this fate."""
        with trio.fail_after(10):
            while await fate(self.client, self.target) != wanted:  # noqa: ASYNC110  by trying again
                await trio.sleep(0.1)


@asynccontextmanager
async def alone(
    place: Path, command: Sequence[str] | None = None, **environment: str
) -> AsyncGenerator[Scene, None]:
    file = place / "mesh.yaml"
    settings = LabSettings(
        command=command,
        environment={
            "XDS_ADDRESS": "",
            "FAKE_CA": "true",
            "LOCAL_XDS_PATH": str(file),
            "FAKE_CA_ROOT": str(place / "root.pem"),
            **environment,
        },
        watch_wire=False,
    )
    with trio.fail_after(60):
        async with open_lab(settings) as lab:
            await lab.istiod.stop()
            client = await lab.add_pod("client", node="node-1", known=False)
            server = await lab.add_pod("server", node="node-2", known=False)
            scene = Scene(lab, client, server, file)
            scene.write()
            await lab.start()
            await server.serve(8080, apps.echo)
            yield scene


@trio_test
async def test_proxies_that_share_file_and_root_talk_by_mutual_tls(tmp_path: Path) -> None:
    async with alone(tmp_path) as scene:
        assert await exchange(scene.client, scene.target) == HELLO

        node = scene.lab.nodes["node-2"]
        secured = {"reporter": "destination", "connection_security_policy": "mutual_tls"}
        assert await total(node, "istio_tcp_connections_opened_total", **secured) == 1
        assert stat.S_IMODE((tmp_path / "root.pem").stat().st_mode) == 0o600
        assert scene.lab.istiod.streams == []


@trio_test
async def test_a_changed_file_counts_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    async with alone(tmp_path) as scene:
        assert await exchange(scene.client, scene.target) == HELLO
        scene.write(DENY)
        await scene.becomes("cut")
        logs = [node.log for node in scene.lab.nodes.values()]
        marks = [log.mark() for log in logs]

        scene.replace("workloads:\n  - {uid: x, workloadIps: [not an address], namespace: y, services: {}}\n")

        with trio.fail_after(10):
            for log, mark in zip(logs, marks, strict=True):
                line = await log.wait_text("the mesh stays as it was", mark)
                assert f"{scene.file}: workloads[0].workloadIps[0]" in line
                assert "not an address" in line
        assert await fate(scene.client, scene.target) == "cut"
        scene.write()
        await scene.becomes(HELLO)


@trio_test
async def test_without_a_common_root_proxies_do_not_trust_each_other(tmp_path: Path) -> None:
    async with alone(tmp_path, FAKE_CA_ROOT="") as scene:
        assert await fate(scene.client, scene.target) == "cut"

        with trio.fail_after(5):
            await scene.lab.nodes["node-1"].log.wait_text("io error: invalid peer certificate: UnknownIssuer")
