"""Revoked certificates on a real kernel: refused at the handshake, and open connections ended.

The behaviours of ztunnel's `crl_*` tests: inbound and outbound, at the handshake and while connected.
"""

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from cryptography import x509

from tests.netns.shared import in_scene, share
from tests.netns.tools import HELLO, fate, read_exactly, total
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod, open_lab
from ztunnel_trio.model.address import SocketAddress

ECHO = 8082
REJECTIONS = "istio_crl_policy_rejections_total"
NOTICED_SECONDS = 10.0


@dataclass
class Scene:
    """Two nodes whose proxies read one revocation list."""

    lab: Lab
    path: Path
    revoked: list[int] = field(default_factory=list)

    def revoke(self, pod: Pod) -> None:
        """Put the certificates the CA gave for a pod on the list."""
        for call in self.lab.istiod.ca.calls:
            if call.identity == str(pod.identity) and call.leaf_pem:
                serial = x509.load_pem_x509_certificate(call.leaf_pem.encode()).serial_number
                self.revoked.append(serial)
        self.write()

    def write(self) -> None:
        """As Kubernetes does: a new file takes the old one's place."""
        self.path.with_suffix(".new").write_text(self.lab.authority.crl(self.revoked))
        self.path.with_suffix(".new").replace(self.path)


@asynccontextmanager
async def open_scene() -> AsyncGenerator[Scene, None]:
    with TemporaryDirectory() as directory:
        path = Path(directory, "ca-crl.pem")
        settings = LabSettings(watch_wire=False, environment={"CRL_PATH": str(path)})
        async with open_lab(settings) as lab:
            scene = Scene(lab, path)
            scene.write()
            await lab.start()
            yield scene


scene = share(open_scene)


@pytest.mark.parametrize(
    ("revoked", "reporter"),
    [
        pytest.param("client", "destination", id="crl_inbound"),
        pytest.param("server", "source", id="crl_outbound"),
    ],
)
@in_scene
async def test_a_revoked_certificate_ends_open_connections_and_gets_no_new_ones(
    scene: Scene, revoked: str, reporter: str
) -> None:
    lab = scene.lab
    client = await lab.add_pod(f"client-{revoked}", node="node-1")
    server = await lab.add_pod(f"server-{revoked}", node="node-2")
    witness = await lab.add_pod(f"witness-{revoked}", node="node-1" if revoked == "client" else "node-2")
    for pod in (server, witness):
        await pod.serve(ECHO, apps.echo)
    judge = lab.nodes["node-2" if revoked == "client" else "node-1"]
    target = SocketAddress(server.ip, ECHO)
    mark, before = judge.log.mark(), await total(judge, REJECTIONS, reporter=reporter)

    async with await client.connect(target) as stream:
        await stream.send_all(HELLO)
        assert await read_exactly(stream, len(HELLO)) == HELLO
        scene.revoke(client if revoked == "client" else server)
        with trio.fail_after(NOTICED_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some(1) == b""
    ended = await total(judge, REJECTIONS, reporter=reporter)
    assert ended == before + 1
    [line] = await judge.log.wait_access(mark)
    assert line.get("error") == "connection closed: peer certificate revoked by CRL"

    assert await fate(client, target) == "cut"
    assert await total(judge, REJECTIONS, reporter=reporter) > ended
    others = (witness, target) if revoked == "client" else (client, SocketAddress(witness.ip, ECHO))
    assert await fate(*others) == HELLO
