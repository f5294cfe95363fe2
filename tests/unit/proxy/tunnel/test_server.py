import socket
import ssl

import pytest
import trio
import trio.lowlevel

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import never_asked, tls_pair, two_hops, until
from ztunnel_trio.model.address import HostPort
from ztunnel_trio.model.ending import By, GoAway, StreamReset, TunnelLost
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import H2Failed
from ztunnel_trio.wire.http2.codes import ErrorCode


@trio_test
async def test_a_refusal_is_an_answer_with_a_status() -> None:
    async with two_hops() as hops:
        stream = await hops.client.open(HostPort("nobody", 80), [])

        assert stream.status == 503
        stream.close()
        await until(lambda: not (hops.client.active_streams or hops.server.active_streams))


@trio_test
async def test_a_server_that_drops_a_request_resets_it() -> None:
    async def serve(request: TunnelRequest) -> None:
        await trio.lowlevel.checkpoint()

    async with two_hops(serve=serve) as hops:
        with pytest.raises(H2Failed) as caught:
            await hops.client.open(HostPort("nobody", 80), [])
        assert caught.value.ending == StreamReset(ErrorCode.CANCEL)


@trio_test
async def test_draining_lets_streams_finish_and_takes_no_more() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await source.send(b"x")
        await destination.receive_exactly(1)
        hops.server.drain()
        await until(lambda: not (hops.client.is_usable))

        await source.send(b"still")
        assert await destination.receive_exactly(5) == b"still"
        with pytest.raises(H2Failed) as caught:
            await hops.client.open(HostPort("late", 80), [])
        assert caught.value.ending == TunnelLost(GoAway(ErrorCode.NO_ERROR))
        source.end()
        destination.end()
        assert await hops.result("out one:80") is None
        with trio.fail_after(5):
            await hops.client.ended.wait()
            await hops.server.ended.wait()


@trio_test
async def test_a_peer_that_asks_and_never_reads_is_cut_off() -> None:
    settings = b"\0\0\0\x04\0\0\0\0\0"
    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        near, far = await tls_pair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        tunnel = ServerTunnel(engine, far, TunnelSettings(goodbye_seconds=0.01))
        with near:
            near.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            nursery.start_soon(tunnel.run, never_asked)
            flood = memoryview(ping * 900)
            with trio.fail_after(10):
                while not tunnel.ended.is_set():
                    try:
                        sent = near.write(flood)
                        assert sent == len(flood)
                    except ssl.SSLWantWriteError:
                        await trio.sleep(0.001)
                    except OSError:
                        break
                    await trio.lowlevel.checkpoint()
                await tunnel.ended.wait()
        assert tunnel.loss == GoAway(ErrorCode.ENHANCE_YOUR_CALM, By.US)
        nursery.cancel_scope.cancel()
