import random

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, contexts, two_hops, until
from ztunnel_trio.model.address import HostPort
from ztunnel_trio.net.tls.memory import MemoryTls
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings

MIB = 1 << 20


@trio_test
async def test_double_hbone_runs_a_tunnel_in_a_stream() -> None:
    data = random.Random(5).randbytes(4 * MIB)
    client_context, server_context = contexts()

    async def gateway(request: TunnelRequest) -> None:
        inner = MemoryTls(hops.engine, request.accept([]), server_context, server_side=True)
        await inner.handshake()
        await ServerTunnel(hops.engine, inner, TunnelSettings()).run(hops.serve)

    async def send(app: App) -> None:
        await app.send(data)
        app.end()

    async with two_hops(serve=gateway) as hops:
        outer = hops.client
        stream = await outer.open(HostPort("gateway", 15008), [])
        inner = MemoryTls(hops.engine, stream, client_context, server_side=False, server_hostname="node.test")
        await inner.handshake()
        hops.client = ClientTunnel(hops.engine, inner, TunnelSettings())
        await hops.nursery.start(hops.client.run)
        source, destination = await hops.connection()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, source)
            nursery.start_soon(send, destination)
            assert await destination.receive_all() == data
            assert await source.receive_all() == data
        assert await hops.result("out one:80") is None
        assert await hops.result("in one:80") is None

        source, destination = await hops.connection("two")
        await source.send(b"x")
        await destination.receive_exactly(1)
        source.reset()
        with pytest.raises(ConnectionResetError):
            await destination.receive()
        hops.client.release_when_idle()
        with trio.fail_after(5):
            await hops.client.ended.wait()
        await until(lambda: not outer.active_streams)
        assert outer.is_usable


@trio_test
async def test_an_inner_handshake_on_a_reset_stream_fails() -> None:
    async def gateway(request: TunnelRequest) -> None:
        stream = request.accept([])
        await trio.sleep(0.01)
        stream.reset(2)

    client_context, _ = contexts()
    async with two_hops(serve=gateway) as hops:
        stream = await hops.client.open(HostPort("gateway", 15008), [])
        inner = MemoryTls(hops.engine, stream, client_context, server_side=False, server_hostname="node.test")
        with pytest.raises(ConnectionResetError), trio.fail_after(5):
            await inner.handshake()
        inner.stop()
