"""A proxy for which no shortcut works serves by the plain ways, and says so. Needs root."""

import json
import sys

from tests.netns.tools import HELLO, double, exchange
from tests.netns.with_lab import with_lab
from ztunnel_trio.lab.mesh import Lab, LabSettings
from ztunnel_trio.model.address import SocketAddress

DOUBLE = 8080
# As another CPython, OpenSSL or Trio might be: what is reached for is not there, or does nothing.
WITHOUT = """
import socket, ssl, sys
import trio
from ztunnel_trio.shortcuts import accepting, queued, tls, tls_messages

del sys.modules["trio._core._run"]
for module in (accepting, queued, tls, tls_messages):
    module.short = None
    module.is_short = lambda: False
from ztunnel_trio.__main__ import main

sys.exit(main(["proxy", "ztunnel"]))
"""
COMMAND = (sys.executable, "-c", WITHOUT)


@with_lab(LabSettings(nodes=("one", "two"), commands={"one": COMMAND, "two": COMMAND}, watch_wire=False))
async def test_a_proxy_without_shortcuts_serves_and_says_so(lab: Lab) -> None:
    client = await lab.add_pod("client", node="one")
    server = await lab.add_pod("server", node="two")
    outsider = await lab.add_outsider("outsider")
    await server.serve(DOUBLE, double)
    await lab.start()

    for caller in (client, outsider):
        for _ in range(3):
            assert await exchange(caller, SocketAddress(server.ip, DOUBLE)) == HELLO + HELLO

    dump = json.loads((await lab.nodes["one"].proxy.admin("/config_dump")).body)
    assert dump["config"]["shortcuts"] == {
        "accept": "socket.accept",
        "queued": "read",
        "tls": "SSLSocket",
        "tls messages": "not seen",
        "wait": "as a task",
    }
    assert any("no way into the wait of Trio" in line for line in lab.nodes["one"].log.raw())
