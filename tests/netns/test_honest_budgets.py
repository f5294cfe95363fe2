"""The busiest honest traffic we know, our own and Envoy's, uses less than a quarter of any budget."""

import socket
from collections.abc import Awaitable, Callable

import trio

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, TwoHops, two_hops
from tests.netns.envoy import Http2, hbone_client, hbone_server, need_envoy, start_envoy, write_identity
from tests.netns.with_lab import with_lab
from ztunnel_trio.facts.network import HBONE_PORT
from ztunnel_trio.lab import apps
from ztunnel_trio.lab.hbone import HboneServer, answering, certificate_of, open_tunnel
from ztunnel_trio.lab.mesh import Lab
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.wire.http2.budgets import Excess

MOST = 0.25
PORT = 8080
WINDOWS = Http2(stream_window=4 << 20, connection_window=16 << 20)
Dial = Callable[[], Awaitable[trio.SocketStream]]


async def round_trips(stream: trio.SocketStream, count: int, size: int) -> None:
    """Exchanges of so many bytes with an echo."""
    for _ in range(count):
        await stream.send_all(bytes(size))
        left = size
        while left:
            left -= len(await stream.receive_some(left))


async def new_connections(dial: Dial, count: int) -> None:
    """One after the other, each with one exchange."""
    for _ in range(count):
        async with await dial() as stream:
            await round_trips(stream, 1, 100)
            await stream.send_eof()
            assert not await stream.receive_some(1)


async def long_connection(dial: Dial, count: int) -> None:
    """Exchanges on one connection."""
    async with await dial() as stream:
        await round_trips(stream, count, 100)


async def single_bytes(dial: Dial, count: int) -> None:
    """Both ways at once, a byte at a time, without waiting for anything."""
    async with await dial() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(count):
                await stream.send_all(b"x")

        nursery.start_soon(send)
        left = count
        while left:
            left -= len(await stream.receive_some(left))


async def bulk(dial: Dial, size: int) -> None:
    """Both ways at once, as fast as it goes."""
    async with await dial() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(size))
        left = size
        while left:
            left -= len(await stream.receive_some(min(left, 1 << 18)))


async def everything(dial: Dial) -> None:
    """conn16, rtt32, single bytes and bulk, all at the same time."""
    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(new_connections, dial, 12)
        for _ in range(32):
            nursery.start_soon(long_connection, dial, 30)
        for _ in range(4):
            nursery.start_soon(single_bytes, dial, 1000)
            nursery.start_soon(bulk, dial, 8 << 20)


def below(peaks: dict[Excess, float]) -> bool:
    """Whether there was traffic at all, and all of it modest."""
    return Excess.SETTINGS in peaks and max(peaks.values()) < MOST


@trio_test
async def test_our_own() -> None:
    async with two_hops() as hops, trio.open_nursery() as nursery:
        count = iter(range(10_000))

        async def dial() -> trio.SocketStream:
            near, far = await hops.connection(f"c{next(count)}")
            nursery.start_soon(echo, hops, far)
            return trio.SocketStream(trio.socket.from_stdlib_socket(near.sock))

        await everything(dial)

        assert below(hops.client.budget_peaks())
        assert below(hops.server.budget_peaks())


async def echo(hops: TwoHops, app: App) -> None:
    """The other end of a connection."""
    while piece := await app.receive():
        await app.send(piece)
    app.end()


@with_lab()
async def test_envoys_as_a_client(lab: Lab) -> None:
    need_envoy()
    client = await lab.add_pod("client", node="node-1", captured=False)
    server = await lab.add_pod("server", node="node-2", captured=False)
    target, peer = SocketAddress(client.ip, PORT), SocketAddress(server.ip, HBONE_PORT)
    files = write_identity(lab, client.identity)
    hbone = HboneServer(server.host, certificate_of(lab.authority, server.identity), answering(apps.echo))
    async with trio.open_nursery() as nursery:
        await nursery.start(hbone.run)
        parts = [hbone_client(target, peer, SocketAddress(server.ip, PORT), files, WINDOWS)]
        await start_envoy(lab, client.host, parts)

        async def dial() -> trio.SocketStream:
            return await client.connect(target)

        await everything(dial)

        assert hbone.tunnels
        assert all(below(tunnel.budget_peaks()) for tunnel in hbone.tunnels)
        nursery.cancel_scope.cancel()


@with_lab()
async def test_envoys_as_a_server(lab: Lab) -> None:
    need_envoy()
    client = await lab.add_outsider("client")
    server = await lab.add_pod("server", node="node-2", captured=False)
    await server.serve(PORT, apps.echo)
    files = write_identity(lab, server.identity)
    app = SocketAddress(server.ip, PORT)
    await start_envoy(lab, server.host, [hbone_server(server.host, app, files, WINDOWS)])
    identity = server.identity
    certificate = certificate_of(lab.authority, identity)
    target = SocketAddress(server.ip, HBONE_PORT)
    async with open_tunnel(client.host, target, certificate, [identity]) as peer:

        async def dial() -> trio.SocketStream:
            stream = await peer.connect(app)
            assert stream.status == 200
            return peer.converse(stream)

        await everything(dial)

        assert below(peer.tunnel.budget_peaks())
