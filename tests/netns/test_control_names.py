"""The names istiod and its CA may have: the address dialled, or the settings' alternative, and no other."""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from tests.fakes.trio_test import trio_test
from tests.netns.tools import HELLO, exchange, fate
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.hosts import GATEWAY_V4
from ztunnel_trio.lab.mesh import Lab, LabSettings, Node, Pod, open_lab
from ztunnel_trio.model.address import SocketAddress

OTHER_NAME = "istiod.elsewhere.svc"
DIALLED = str(GATEWAY_V4)


@asynccontextmanager
async def istiod_as(*names: str, **environment: str) -> AsyncGenerator[tuple[Lab, Node], None]:
    """A lab whose istiod, the CA included, has a certificate for these names only; nothing is started."""
    settings = LabSettings(nodes=("node-1",), environment=environment, watch_wire=False)
    with trio.fail_after(60):
        async with open_lab(settings) as lab:
            await lab.istiod.stop()
            lab.istiod.certificate = lab.root.server(*names)
            await lab.start_istiod()
            yield lab, lab.nodes["node-1"]


async def two_pods(lab: Lab) -> tuple[Pod, SocketAddress]:
    """A client, and where a server answers it."""
    client, server = [await lab.add_pod(name, node="node-1") for name in ("client", "server")]
    await server.serve(8080, apps.echo)
    return client, SocketAddress(server.ip, 8080)


@trio_test(seconds=90)
async def test_a_certificate_for_the_alternative_names_alone_is_enough() -> None:
    async with istiod_as(OTHER_NAME, ALT_XDS_HOSTNAME=OTHER_NAME, ALT_CA_HOSTNAME=OTHER_NAME) as (lab, _):
        client, target = await two_pods(lab)
        await lab.start()

        assert await exchange(client, target) == HELLO
        assert {call.identity for call in lab.istiod.ca.calls if call.leaf_pem} >= {str(client.identity)}


@trio_test(seconds=90)
async def test_without_the_alternative_istiod_is_refused_by_its_name_and_asked_again() -> None:
    async with istiod_as(OTHER_NAME) as (lab, node):
        node.start()

        line = await node.log.wait_text("XDS client connection error")
        pattern = rf"invalid peer certificate: .*{re.escape(DIALLED)}'.*, retrying in \d+"
        assert re.search(pattern, line), line
        await node.log.wait_text("XDS client connection error", node.log.mark())
        assert await node.proxy.ready() == 500
        assert lab.istiod.streams == []


@trio_test(seconds=90)
async def test_a_certificate_for_neither_name_is_refused_with_both() -> None:
    async with istiod_as("somebody.else", ALT_XDS_HOSTNAME=OTHER_NAME) as (lab, node):
        node.start()

        line = await node.log.wait_text("XDS client connection error")

        assert f"invalid peer certificate: not valid for '{DIALLED}' or '{OTHER_NAME}', retrying in" in line
        assert await node.proxy.ready() == 500
        assert lab.istiod.streams == []


@trio_test(seconds=90)
async def test_the_alternative_of_istiod_is_not_that_of_the_ca() -> None:
    async with istiod_as(OTHER_NAME, ALT_XDS_HOSTNAME=OTHER_NAME, ALT_CA_HOSTNAME="ca.elsewhere") as (
        lab,
        node,
    ):
        client, target = await two_pods(lab)
        await lab.start()

        assert await fate(client, target) == "cut"
        [line] = await node.log.wait_access(0, {"direction": "outbound"})
        assert line.get("error").startswith("identity error: signing gRPC error (Unknown error): ")
        assert f"not valid for '{DIALLED}' or 'ca.elsewhere'" in line.get("error")
        assert lab.istiod.ca.calls == []
