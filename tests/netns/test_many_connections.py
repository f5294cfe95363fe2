"""One client outside the mesh with thousands of connections to one captured pod. Needs root."""

import resource
from collections import Counter
from contextlib import ExitStack

import trio

from tests.netns.with_lab import with_lab
from ztunnel_trio.lab.mesh import Lab, LabSettings, Pod
from ztunnel_trio.model.address import SocketAddress

PORT = 8080
HELD = 4000
AT_ONCE = 50


async def greet(stream: trio.SocketStream) -> None:
    """Say hello and stay."""
    await stream.send_all(b"hi")
    await stream.receive_some(1)


async def call(client: Pod, address: SocketAddress, held: ExitStack) -> str:
    """Open a connection and keep it; what came of it: `hi`, or what went wrong."""
    with client.host.netns.inside():
        sock = trio.socket.socket()
    held.callback(sock.close)
    try:
        with trio.fail_after(10):
            await sock.connect((str(address.ip), address.port))
            return (await sock.recv(2)).decode()
    except (OSError, trio.TooSlowError) as error:
        return f"{error!r}"


@with_lab(LabSettings(nodes=("node-1",), watch_wire=False), seconds=120)
async def test_a_client_holds_four_thousand_connections_to_a_pod(lab: Lab) -> None:
    """Its kernel knows nothing of the ports that our second legs bear with its address."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server, client = await lab.add_pod("server", node="node-1"), await lab.add_outsider("plain")
    await server.serve(PORT, greet)
    await lab.start()
    answers = Counter[str]()
    with ExitStack() as held:

        async def call_some(count: int) -> None:
            for _ in range(count):
                answers[await call(client, SocketAddress(server.ip, PORT), held)] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(call_some, HELD // AT_ONCE)
    assert answers == {"hi": HELD}
