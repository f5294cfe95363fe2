"""A foreign peer: Envoy as HBONE server, as HBONE client and as both in a row, with mutual TLS.

Each way has an application at either end and Envoy somewhere between:

    server    application, our proxy | Envoy, application
    client    application, Envoy | our proxy, application
    waypoint  application, our proxy | Envoy that ends one tunnel and begins another | our proxy, application
    relay     application, our proxy | Envoy that passes CONNECT on as it is | our proxy, application

Where Envoy joins a stream to a TCP connection it does not pass everything on: an application that ends its
data first has its whole stream ended (envoyproxy/envoy#34461: "Behavior of HTTP/1 or TCP proxy upstream
servers is unchanged"), and a stream that is reset becomes a FIN. Our part is then shown by the other ways
and by Envoy's own counters.
"""

import hashlib
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio

from tests.netns.envoy import (
    DEFAULT_WINDOW,
    JOINT,
    Envoy,
    Http2,
    hbone_client,
    hbone_relay,
    hbone_server,
    need_envoy,
    start_envoy,
    write_identity,
)
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab import apps, resources
from ztunnel_trio.lab.mesh import Lab, Pod
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.pb.workload_pb2 import Service, TunnelProtocol, Workload

APP_PORT = 8080
SIZE = 4 << 20
BIG = Http2(stream_window=4 << 20, connection_window=16 << 20)
SMALL = Http2(stream_window=DEFAULT_WINDOW, connection_window=DEFAULT_WINDOW)
SECONDS = 10.0

EVERY_WAY = pytest.mark.parametrize("way", ["server", "client", "waypoint", "relay"])
BOTH_WINDOWS = pytest.mark.parametrize("http2", [BIG, SMALL], ids=["large windows", "small windows"])


@pytest.fixture(autouse=True)
def _envoy() -> None:
    need_envoy()


@dataclass(slots=True, eq=False)
class Scene:
    """The application `server`, and where a program in `client` dials to reach it."""

    lab: Lab
    envoy: Envoy
    client: Pod
    target: SocketAddress
    server: Pod
    ours: list[str]  # the nodes whose proxy takes part

    async def dial(self) -> trio.SocketStream:
        with trio.fail_after(SECONDS):
            return await self.client.connect(self.target)

    def tunnels(self) -> int:
        """How many TLS connections to port 15008 there have been, the most of any hop."""
        flows = [flow for flow in self.lab.wire.everything() if flow.server.port == HBONE_PORT]
        hops = [(flow.client.ip, flow.server.ip) for flow in flows]
        return max(hops.count(hop) for hop in hops)

    def errors(self) -> list[str]:
        """What our proxies' access logs call a failure."""
        lines = [line for node in self.ours for line in self.lab.nodes[node].log.access()]
        return [line.get("error") for line in lines if line.get("error")]


def _speaks_hbone(workload: Workload) -> None:
    workload.tunnel_protocol = TunnelProtocol.HBONE


async def set_scene(lab: Lab, way: str, http2: Http2 = BIG) -> Scene:
    """Build one of the three ways, with everything running but the applications."""
    match way:
        case "server":
            client = await lab.add_pod("client", node="node-1")
            server = await lab.add_pod("server", node="node-2", captured=False, change=_speaks_hbone)
            files = write_identity(lab, server.identity)
            app = SocketAddress(server.ip, APP_PORT)
            parts = [hbone_server(server.host, app, files, http2)]
            envoy = await start_envoy(lab, server.host, parts)
            ours, target = ["node-1"], app
        case "client":
            client = await lab.add_pod("client", node="node-1", captured=False)
            server = await lab.add_pod("server", node="node-2")
            files = write_identity(lab, client.identity)
            target = SocketAddress(client.ip, APP_PORT)
            app, peer = SocketAddress(server.ip, APP_PORT), SocketAddress(server.ip, HBONE_PORT)
            parts = [hbone_client(target, peer, app, files, http2)]
            envoy = await start_envoy(lab, client.host, parts)
            ours = ["node-2"]
        case "relay":
            client = await lab.add_pod("client", node="node-1")
            relay = await lab.add_pod("relay", node="node-2", captured=False)

            def behind_relay(workload: Workload) -> None:
                workload.waypoint.CopyFrom(resources.gateway(str(relay.ip)))

            server = await lab.add_pod("server", node="node-2", change=behind_relay)
            files = write_identity(lab, relay.identity)
            parts = [hbone_relay(relay.host, SocketAddress(server.ip, HBONE_PORT), files, http2)]
            envoy = await start_envoy(lab, relay.host, parts)
            ours, target = ["node-1", "node-2"], SocketAddress(server.ip, APP_PORT)
        case _:
            client = await lab.add_pod("client", node="node-1")
            server = await lab.add_pod("server", node="node-2")
            waypoint = await lab.add_pod("waypoint", node="node-2", captured=False)
            files = write_identity(lab, waypoint.identity)
            app, peer = SocketAddress(server.ip, APP_PORT), SocketAddress(server.ip, HBONE_PORT)

            def behind(service: Service) -> None:
                service.waypoint.CopyFrom(resources.gateway(str(waypoint.ip)))

            await lab.add_service("web", [server], ports={80: APP_PORT}, change=behind)
            parts = [
                hbone_server(waypoint.host, JOINT, files, http2),
                hbone_client(JOINT, peer, app, files, http2),
            ]
            envoy = await start_envoy(lab, waypoint.host, parts)
            ours, target = ["node-1", "node-2"], lab.address_of("web")
    await lab.start()
    return Scene(lab, envoy, client, target, server, ours)


async def read_all(stream: trio.SocketStream) -> bytes:
    pieces = bytearray()
    while piece := await stream.receive_some(1 << 18):
        pieces += piece
    return bytes(pieces)


def digest_of(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


async def exchange(scene: Scene, data: bytes) -> None:
    """Send and receive at the same time, through an echo, and compare."""
    async with await scene.dial() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        assert digest_of(await read_all(stream)) == digest_of(data)


@EVERY_WAY
@BOTH_WINDOWS
@with_lab()
async def test_what_is_sent_arrives_unchanged_in_both_directions_at_once(
    lab: Lab, way: str, http2: Http2
) -> None:
    scene = await set_scene(lab, way, http2)
    await scene.server.serve(APP_PORT, apps.echo)

    await exchange(scene, apps.payload(SIZE))

    assert scene.errors() == []


@EVERY_WAY
@with_lab()
async def test_the_clients_end_reaches_the_server_which_still_answers(lab: Lab, way: str) -> None:
    scene = await set_scene(lab, way)
    await scene.server.serve(APP_PORT, apps.digest)
    data = apps.payload(SIZE)

    async with await scene.dial() as stream:
        await stream.send_all(data)
        await stream.send_eof()

        with trio.fail_after(SECONDS):
            assert (await read_all(stream)).decode() == digest_of(data)
    assert scene.errors() == []


@dataclass(slots=True, eq=False)
class EndsFirst:
    """An application that says a few words, ends, and hears out the client."""

    heard: str = ""
    done: trio.Event = field(default_factory=trio.Event)

    async def __call__(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"that is all")
        await stream.send_eof()
        self.heard = digest_of(await read_all(stream))
        self.done.set()


@pytest.mark.parametrize("way", ["client", "relay"])
@with_lab()
async def test_the_servers_end_reaches_the_client_which_still_sends(lab: Lab, way: str) -> None:
    scene = await set_scene(lab, way)
    app = EndsFirst()
    await scene.server.serve(APP_PORT, app)
    data = apps.payload(SIZE)

    async with await scene.dial() as stream:
        with trio.fail_after(SECONDS):
            assert await read_all(stream) == b"that is all"
            await stream.send_all(data)
            await stream.send_eof()
            await app.done.wait()

    assert app.heard == digest_of(data)
    assert scene.errors() == []


@pytest.mark.parametrize("way", ["server", "waypoint"])
@with_lab()
async def test_where_envoy_ends_the_stream_with_the_servers_data_the_client_is_told(
    lab: Lab, way: str
) -> None:
    scene = await set_scene(lab, way)
    await scene.server.serve(APP_PORT, EndsFirst())

    async with await scene.dial() as stream:
        with trio.fail_after(SECONDS):
            assert await read_all(stream) == b"that is all"
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(bytes(64 << 20))


@EVERY_WAY
@with_lab()
async def test_a_slow_client_gets_all_of_what_a_server_sent_before_it_closed(lab: Lab, way: str) -> None:
    scene = await set_scene(lab, way)
    data = apps.payload(SIZE)

    async def answer_and_close(stream: trio.SocketStream) -> None:
        await stream.receive_some(64)
        await stream.send_all(data)

    await scene.server.serve(APP_PORT, answer_and_close)
    async with await scene.dial() as stream:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await stream.send_all(b"go")
        await trio.sleep(1)

        heard, end = bytearray(), ""
        with trio.fail_after(SECONDS):
            while not end:
                try:
                    piece = await stream.receive_some(65536)
                    heard += piece
                    end = "" if piece else "end"
                except trio.BrokenResourceError:
                    end = "reset"

    assert digest_of(bytes(heard)) == digest_of(data)
    # An Envoy that joins a stream to a TCP connection resets it behind the data, at times without END_STREAM.
    assert end == "end" or way in ("server", "waypoint")


def reset(stream: trio.SocketStream) -> None:
    """Close as a program that crashed: with a TCP reset."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@dataclass(slots=True, eq=False)
class Listening:
    """An application that answers the first bytes and tells how its connection ended."""

    ended: trio.Event = field(default_factory=trio.Event)
    how: str = ""

    async def __call__(self, stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some(64))
        self.how = await how_it_ends(stream)
        self.ended.set()


async def how_it_ends(stream: trio.SocketStream) -> str:
    """Read on: the end of data, or the name of the error."""
    try:
        return "data" if await stream.receive_some(64) else "end"
    except trio.BrokenResourceError as error:
        return type(error.__cause__).__name__


RESET = "ConnectionResetError"


@pytest.mark.parametrize(
    ("way", "seen"), [("server", "end"), ("client", RESET), ("waypoint", "end"), ("relay", RESET)]
)
@with_lab()
async def test_a_reset_of_the_clients_connection_reaches_the_server(lab: Lab, way: str, seen: str) -> None:
    scene = await set_scene(lab, way)
    app = Listening()
    await scene.server.serve(APP_PORT, app)
    stream = await scene.dial()
    await stream.send_all(b"hello")
    assert await stream.receive_some(64) == b"hello"

    reset(stream)

    with trio.fail_after(SECONDS):
        await app.ended.wait()
    assert app.how == seen
    if way != "client":
        assert await scene.envoy.total("http2.rx_reset") == 1


@pytest.mark.parametrize(
    ("way", "seen"), [("server", RESET), ("client", "end"), ("waypoint", "end"), ("relay", RESET)]
)
@with_lab()
async def test_a_reset_of_the_servers_connection_reaches_the_client(lab: Lab, way: str, seen: str) -> None:
    scene = await set_scene(lab, way)

    async def crash(stream: trio.SocketStream) -> None:
        await stream.send_all(await stream.receive_some(64))
        await stream.receive_some(64)
        reset(stream)

    await scene.server.serve(APP_PORT, crash)
    async with await scene.dial() as stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some(64) == b"hello"
        await stream.send_all(b"and now?")

        with trio.fail_after(SECONDS):
            assert await how_it_ends(stream) == seen
    if way != "server":
        assert await scene.envoy.total("http2.rx_reset") == 1


@EVERY_WAY
@BOTH_WINDOWS
@with_lab()
async def test_many_connections_share_one_tunnel(lab: Lab, way: str, http2: Http2) -> None:
    scene = await set_scene(lab, way, http2)
    await scene.server.serve(APP_PORT, apps.echo)
    await exchange(scene, b"first")

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                data = apps.payload(100_000, seed=b"%d" % number)
                nursery.start_soon(exchange, scene, data)

    assert scene.tunnels() == 1
    assert scene.errors() == []


@EVERY_WAY
@with_lab()
async def test_a_connection_whose_reader_sleeps_does_not_hold_up_the_others(lab: Lab, way: str) -> None:
    scene = await set_scene(lab, way)
    await scene.server.serve(APP_PORT, apps.echo)
    async with await scene.dial() as sleeper, trio.open_nursery() as nursery:
        sent = 0

        async def fill() -> None:
            nonlocal sent
            while True:
                await sleeper.send_all(bytes(65536))
                sent += 65536

        nursery.start_soon(fill)
        await stays_the_same(lambda: sent)

        await exchange(scene, apps.payload(SIZE))

        assert sent < 256 << 20
        nursery.cancel_scope.cancel()
    assert scene.tunnels() == 1


async def stays_the_same(value: Callable[[], int]) -> None:
    """Wait until a number has not changed for a while."""
    before = -1
    with trio.fail_after(SECONDS):
        while before != (before := value()):  # noqa: ASYNC110  the kernel's buffers raise no event
            await trio.sleep(0.5)


async def wait_until(holds: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(SECONDS):
        while not await holds():  # noqa: ASYNC110  nor do Envoy's counters
            await trio.sleep(0.05)


@EVERY_WAY
@with_lab()
async def test_tunnels_that_envoy_drains_are_replaced_and_lose_nothing(lab: Lab, way: str) -> None:
    scene = await set_scene(lab, way, Http2(requests_per_connection=5))
    await scene.server.serve(APP_PORT, apps.echo)

    async with await scene.dial() as lasting:
        for number in range(23):
            await exchange(scene, apps.payload(50_000, seed=b"%d" % number))
        await lasting.send_all(b"still there?")
        assert await lasting.receive_some(64) == b"still there?"

    assert scene.tunnels() >= 4
    assert scene.errors() == []


@with_lab()
async def test_a_drained_envoy_ends_its_tunnels_without_a_failure(lab: Lab) -> None:
    scene = await set_scene(lab, "server")
    await scene.server.serve(APP_PORT, apps.echo)

    async with await scene.dial() as lasting:
        await lasting.send_all(b"one")
        assert await lasting.receive_some(64) == b"one"
        assert await scene.envoy.post("/drain_listeners?graceful&skip_exit") == 200
        for number in range(10):
            await exchange(scene, apps.payload(50_000, seed=b"%d" % number))
        await lasting.send_all(b"two")
        assert await lasting.receive_some(64) == b"two"

    assert scene.errors() == []


@with_lab()
async def test_our_drain_lets_envoys_streams_finish_and_takes_no_new_ones(lab: Lab) -> None:
    scene = await set_scene(lab, "client")
    await scene.server.serve(APP_PORT, apps.echo)
    proxy = lab.nodes["node-2"].proxy

    async with await scene.dial() as lasting, trio.open_nursery() as nursery:
        await lasting.send_all(b"one")
        assert await lasting.receive_some(64) == b"one"
        nursery.start_soon(proxy.stop, signal.SIGTERM)

        async def goes_away() -> bool:
            return await scene.envoy.total("upstream_cx_close_notify") > 0

        await wait_until(goes_away)
        await lasting.send_all(apps.payload(SIZE))
        await lasting.send_eof()
        assert digest_of(await read_all(lasting)) == digest_of(apps.payload(SIZE))

    assert proxy.returncode == 0
    assert scene.errors() == []
