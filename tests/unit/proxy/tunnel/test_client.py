import pytest
import trio
import trio.lowlevel

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tls_pair, two_hops, until
from ztunnel_trio.model.address import HostPort
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import H2Failed


@trio_test
async def test_the_answers_headers_are_handed_up() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await source.send(b"x")
        await destination.receive_exactly(1)

        assert hops.client.active_streams == 1
        assert hops.client.peer_max_streams == 200


@trio_test
async def test_opens_beyond_the_peers_limit_wait_for_a_free_stream() -> None:
    let_go = trio.Event()

    async def serve(request: TunnelRequest) -> None:
        request.accept([])
        await let_go.wait()

    async with two_hops(TunnelSettings(max_streams=2, assumed_peer_streams=2), serve=serve) as hops:
        first = await hops.client.open(HostPort("a", 1), [])
        await hops.client.open(HostPort("b", 1), [])
        opened = trio.Event()

        async def third() -> None:
            await hops.client.open(HostPort("c", 1), [])
            opened.set()

        hops.nursery.start_soon(third)
        await trio.sleep(0.01)
        assert not opened.is_set()
        first.close()
        with trio.fail_after(5):
            await opened.wait()


@trio_test
async def test_a_released_tunnel_closes_after_its_last_stream() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await source.send(b"x")
        await destination.receive_exactly(1)
        hops.client.release_when_idle()
        await trio.sleep(0.01)
        assert not hops.client.ended.is_set()
        assert not hops.client.is_usable

        source.end()
        destination.end()
        with trio.fail_after(5):
            await hops.client.ended.wait()
            await hops.server.ended.wait()
        assert await hops.result("in one:80") is None


@trio_test
async def test_a_cancelled_open_resets_its_stream() -> None:
    async def serve(request: TunnelRequest) -> None:
        await trio.sleep_forever()

    async with two_hops(serve=serve) as hops:
        with trio.move_on_after(0.02):
            await hops.client.open(HostPort("never", 80), [])

        assert hops.client.active_streams == 0
        await until(lambda: not (hops.server.active_streams))


@trio_test(autojump=True)
async def test_a_connect_on_a_tunnel_whose_peer_is_gone_fails_before_the_keepalive_does() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        near, far = await tls_pair()
        with far:
            tunnel = ClientTunnel(engine, near, TunnelSettings())
            await nursery.start(tunnel.run)
            began = trio.current_time()

            with pytest.raises(H2Failed, match="PeerSilent"):
                await tunnel.open(HostPort("one", 80), [])

            assert 3 <= trio.current_time() - began <= 4
            assert not tunnel.ended.is_set()
            nursery.cancel_scope.cancel()


@trio_test(seconds=10)
async def test_a_late_answer_of_a_peer_that_lives_is_waited_for() -> None:
    async def serve_late(request: TunnelRequest) -> None:
        await trio.sleep(0.5)
        request.accept([])

    settings = TunnelSettings(doubt_seconds=0.05, proof_seconds=0.1)
    async with two_hops(settings, serve=serve_late) as hops:
        stream = await hops.client.open(HostPort("one", 80), [])

        assert stream.status == 200
        stream.close()
