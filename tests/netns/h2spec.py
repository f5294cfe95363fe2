"""h2spec against port 15008: the tool, a bridge that puts its plain HTTP/2 into mutual TLS, its report.

The tool is written in Go; `nox -s h2spec` builds it and names it in H2SPEC.
"""

import os
import shutil
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest
import trio

from ztunnel_trio.lab.hosts import Host
from ztunnel_trio.lab.mesh import Lab
from ztunnel_trio.lab.proxy_process import ProxyProcess
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId

BRIDGE: Final = SocketAddress(IPv4Address("127.0.0.1"), 9900)
_READ_BYTES: Final = 65536
_POLL_SECONDS: Final = 0.05
_PATIENCE_SECONDS: Final = 2  # of the tool, for each answer it waits for


def need_h2spec() -> str:
    """The tool, or a skip."""
    path = os.environ.get("H2SPEC") or shutil.which("h2spec")  # noqa: TID251  how nox names it
    if path is None:
        pytest.skip("needs h2spec: run `nox -s h2spec`, which builds it with Go")
    return path


@dataclass(frozen=True, slots=True)
class Case:
    """One case: `section` as h2spec numbers them, `number` within it, and what came of it."""

    section: str
    number: int
    title: str
    outcome: str  # "passed", "failed" or "skipped"
    detail: str

    @property
    def name(self) -> str:
        return f"{self.section}/{self.number}"


async def run_h2spec(lab: Lab, host: Host, *, seconds: float) -> list[Case]:
    """Run every case, strict ones too, against the bridge of this host.

    Raises:
        TooSlowError: it takes longer than `seconds`.
    """
    directory = lab.directory / "h2spec"
    directory.mkdir()
    report = directory / "report.xml"
    where = ["--host", str(BRIDGE.ip), "--port", str(BRIDGE.port), "--timeout", str(_PATIENCE_SECONDS)]
    command = [need_h2spec(), "--strict", *where, "--junit-report", str(report)]
    process = ProxyProcess(host, directory, command=command, environment={})
    process.start()
    try:
        with trio.fail_after(seconds):
            while process.is_running:  # noqa: ASYNC110  its end raises no event
                await trio.sleep(_POLL_SECONDS)
    finally:
        process.kill()
    return read_report(report)


def read_report(path: Path) -> list[Case]:
    """The cases of a JUnit report in their order."""
    found: list[Case] = []
    counts: dict[str, int] = {}
    for element in ET.parse(path).getroot().iter("testcase"):
        section = element.get("package", "")
        counts[section] = counts.get(section, 0) + 1
        title = element.get("classname", "")
        bad = [child for child in element if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not bad else "skipped" if bad[0].tag == "skipped" else "failed"
        detail = "; ".join((child.text or "").strip() for child in bad)
        found.append(Case(section, counts[section], title, outcome, detail))
    return found


async def bridge(
    lab: Lab, host: Host, identity: SpiffeId, target: SocketAddress, *, task_status: trio.TaskStatus[None]
) -> None:
    """Carry whatever comes to `BRIDGE` in this host to `target`, in TLS with a certificate of `identity`."""
    context = _client_context(lab, identity)
    listener = host.listen(BRIDGE.port, ip=BRIDGE.ip)

    async def serve(plain: trio.SocketStream) -> None:
        try:
            async with plain, await host.connect(target) as raw:
                tls = trio.SSLStream(raw, context, https_compatible=True)
                async with trio.open_nursery() as nursery:

                    async def upstream() -> None:
                        await _copy(plain, tls)
                        nursery.cancel_scope.cancel(reason="the tool closed")

                    nursery.start_soon(upstream)
                    await _copy(tls, plain)
                    await plain.send_eof()
        except* (OSError, trio.BrokenResourceError):
            pass  # both ends of it break rules on purpose

    async with trio.open_nursery() as nursery:
        task_status.started()
        await trio.serve_listeners(serve, [listener], handler_nursery=nursery)


def _client_context(lab: Lab, identity: SpiffeId) -> ssl.SSLContext:
    leaf = lab.authority.leaf(str(identity))
    chain, key = lab.directory / "bridge.pem", lab.directory / "bridge.key"
    chain.write_text(leaf.chain_pem)
    key.write_text(leaf.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a workload's certificate names an identity, not a host
    context.load_verify_locations(cadata=lab.root.root_pem)
    context.load_cert_chain(chain, key)
    context.set_alpn_protocols(["h2"])
    return context


async def _copy(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
    while data := await source.receive_some(_READ_BYTES):
        await sink.send_all(data)


def sections(cases: Sequence[Case]) -> set[str]:
    """What the report covers."""
    return {case.section.split("/")[0] for case in cases}
