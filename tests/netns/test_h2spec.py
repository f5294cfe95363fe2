"""HTTP/2 conformance of port 15008, by h2spec over mutual TLS. Run by `nox -s h2spec`, which builds the tool.

h2spec only ever sends GET and POST, which a CONNECT-only server answers with 400 and headers alone.
"""

from functools import partial

import pytest
import trio

from tests.netns.h2spec import BRIDGE, bridge, need_h2spec, run_h2spec, sections
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab.mesh import Lab
from ztunnel_trio.model.address import SocketAddress

RUN_SECONDS = 240.0  # some 10 s when all is well; every case that hangs costs two more
LEAST_CASES = 140

NO_PAYLOAD = "expects a DATA frame in the answer; a refusal has none"
NOT_FOR_CONNECT = {
    "generic/2/2": NO_PAYLOAD,
    "generic/2/3": NO_PAYLOAD,
    "http2/4.2/3": "sends 16 385 bytes and expects them to be too many; SETTINGS allow 1 MiB",
}
SKIPPED = {  # by h2spec itself
    "http2/6.5.3/1": NO_PAYLOAD,
    "http2/6.9.1/1": NO_PAYLOAD,
    "http2/6.9.2/1": NO_PAYLOAD,
    "http2/6.9.2/2": NO_PAYLOAD,
}
TOO_LATE = "breaks a rule in a second frame; the refusal may have closed the stream before it arrives"
RACES = {
    "http2/5.1.2/1": "whether more than 200 streams are open at once depends on who is faster",
    "http2/8.1/1": TOO_LATE,
    "http2/8.1.2.1/3": TOO_LATE,
    "http2/8.1.2.6/1": TOO_LATE,
    "http2/8.1.2.6/2": TOO_LATE,
}


@pytest.fixture(autouse=True)
def _tool() -> None:
    need_h2spec()


@with_lab(seconds=RUN_SECONDS + 30)
async def test_every_case_that_applies_to_a_connect_only_server_passes(lab: Lab) -> None:
    client = await lab.add_pod("client", node="node-1", captured=False)
    server = await lab.add_pod("server", node="node-2")
    await lab.start()
    port = SocketAddress(server.ip, HBONE_PORT)
    await lab.nursery.start(partial(bridge, lab, client.host, client.identity, port))

    cases = await run_h2spec(lab, client.host, seconds=RUN_SECONDS)

    print(f"{len(cases)} cases, {[case.outcome for case in cases].count('passed')} passed")  # noqa: T201
    assert sections(cases) == {"generic", "hpack", "http2"}
    assert len(cases) >= LEAST_CASES
    wrong = {c.name: f"{c.title}: {c.detail}" for c in cases if c.outcome == "failed"}
    assert {name: text for name, text in wrong.items() if name not in NOT_FOR_CONNECT | RACES} == {}
    assert {c.name for c in cases if c.outcome == "skipped"} <= SKIPPED.keys()
    assert lab.nodes["node-2"].proxy.is_running
    assert not [line for line in lab.nodes["node-2"].log.raw() if "Traceback" in line]


@with_lab()
async def test_the_bridge_serves_a_tunnel_and_its_end(lab: Lab) -> None:
    """The bridge itself: what goes wrong above is not its fault."""
    client = await lab.add_pod("client", node="node-1", captured=False)
    server = await lab.add_pod("server", node="node-2")
    await lab.start()
    port = SocketAddress(server.ip, HBONE_PORT)
    await lab.nursery.start(partial(bridge, lab, client.host, client.identity, port))

    with trio.fail_after(10):
        async with await client.connect(BRIDGE) as stream:
            await stream.send_all(b"no preface at all, whatever it may say")
            heard = b""
            while data := await stream.receive_some(4096):
                heard += data

    assert heard[3] == 4  # SETTINGS come first
    assert heard[-14:] == bytes((7, 0, 0, 0, 0, 0)) + bytes(4) + b"\0\0\0\1"  # GOAWAY, PROTOCOL_ERROR
