import errno
import hashlib
import random
import socket
from collections.abc import Callable

import pytest
import trio
import trio.lowlevel

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, TwoHops, never_asked, tls_pair, two_hops, until
from ztunnel_trio.model.ending import Revoked, SystemFailure
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.server import ServerTunnel, TunnelRequest
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.wire.http2.codes import ErrorCode

drivers = pytest.mark.parametrize("in_front", [True, False])
MIB = 1 << 20


@drivers
@trio_test
async def test_bytes_go_both_ways_and_are_counted(in_front: bool) -> None:
    async with two_hops(in_front=in_front) as hops:
        source, destination = await hops.connection()
        await source.send(b"question")
        assert await destination.receive_exactly(8) == b"question"
        await destination.send(b"answer!")
        assert await source.receive_exactly(7) == b"answer!"

        assert (hops.traffic["out one:80"].to_destination, hops.traffic["out one:80"].to_source) == (8, 7)
        assert (hops.traffic["in one:80"].to_destination, hops.traffic["in one:80"].to_source) == (8, 7)
        source.end()
        assert await destination.receive() == b""
        destination.end()
        assert await source.receive() == b""
        assert await hops.result("out one:80") is None
        assert await hops.result("in one:80") is None


@drivers
@trio_test
async def test_64_mib_each_way_arrive_unharmed(in_front: bool) -> None:
    chunk = random.Random(7).randbytes(MIB)

    async def send(app: App, digest: hashlib.blake2b) -> None:
        for number in range(64):
            piece = chunk[number:] + chunk[:number]
            digest.update(piece)
            await app.send(piece)
        app.end()

    async def receive(app: App, digest: hashlib.blake2b) -> None:
        while piece := await app.receive(1 << 18):
            digest.update(piece)

    async with two_hops(in_front=in_front) as hops:
        source, destination = await hops.connection()
        digests = [hashlib.blake2b() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, source, digests[0])
            nursery.start_soon(receive, destination, digests[1])
            nursery.start_soon(send, destination, digests[2])
            nursery.start_soon(receive, source, digests[3])

        assert digests[0].digest() == digests[1].digest()
        assert digests[2].digest() == digests[3].digest()
        assert await hops.result("out one:80") is None
        assert hops.traffic["out one:80"].to_destination == 64 * MIB
        assert hops.traffic["in one:80"].to_source == 64 * MIB


@trio_test
async def test_the_destination_may_close_its_half_first() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await destination.send(b"bye")
        destination.end()
        assert await source.receive_all() == b"bye"

        await source.send(b"still here")
        assert await destination.receive_exactly(10) == b"still here"
        source.end()
        assert await destination.receive() == b""
        assert await hops.result("out one:80") is None
        assert await hops.result("in one:80") is None


@trio_test
async def test_a_reset_of_the_source_reaches_the_destination() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await source.send(b"x")
        await destination.receive_exactly(1)
        source.reset()

        with pytest.raises(ConnectionResetError):
            await destination.receive()
        assert await hops.result("out one:80") is None
        assert await hops.result("in one:80") is None


@trio_test
async def test_a_reset_of_the_destination_reaches_the_source() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await destination.send(b"x")
        await source.receive_exactly(1)
        destination.reset()

        with pytest.raises(ConnectionResetError):
            await source.receive()
        assert await hops.result("in one:80") is None
        assert await hops.result("out one:80") is None


@trio_test
async def test_a_cancelled_connection_is_a_reset_and_an_error_at_the_other_end() -> None:
    async def serve(request: TunnelRequest) -> None:
        stream = request.accept([])
        await trio.sleep(0.02)
        stream.close()

    async with two_hops(serve=serve) as hops:
        source, _ = await hops.connection()
        with pytest.raises(ConnectionResetError):
            await source.receive()
        assert await hops.result("out one:80") == "while closing connection: send: io error: broken pipe"


@trio_test
async def test_a_reset_after_the_end_of_data_is_passed_on_too() -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        source.end()
        assert await destination.receive() == b""
        source.reset()

        await until(
            lambda: destination.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
        )  # after FIN a read finds nothing new: the kernel keeps the error


@pytest.mark.parametrize("size", [65_536, 3 * MIB])  # what the kernel keeps, and more than that
@trio_test
async def test_a_reset_does_not_overtake_what_was_sent_before_it(size: int) -> None:
    data = random.Random(8).randbytes(size)
    async with two_hops() as hops:
        source, destination = await hops.connection()
        source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await destination.send(data)
        await until(lambda: "in one:80" in hops.traffic and hops.traffic["in one:80"].to_source == size)
        destination.reset()
        await hops.result("in one:80")
        await until(lambda: hops.client.active_streams == 0)

        assert await source.receive_exactly(size) == data
        with pytest.raises(ConnectionResetError):
            await source.receive()
        assert await hops.result("out one:80") is None


@trio_test
async def test_a_reset_behind_the_end_of_data_takes_nothing_back() -> None:
    data = random.Random(9).randbytes(3 * MIB)

    async def send_end_and_reset(request: TunnelRequest) -> None:
        stream = request.accept([])
        for start in range(0, len(data), MIB):
            chunk = bytearray(9) + data[start : start + MIB]
            while stream.room() < MIB:  # noqa: ASYNC110  its reader would be told
                await trio.sleep(0.001)
            stream.send(memoryview(chunk), MIB)
        hops.server._connection._core.end(stream.stream_id)
        hops.server._connection._core.reset(stream.stream_id, ErrorCode.CONNECT_ERROR)
        hops.server._connection.streams.flush()
        sent.set()

    sent = trio.Event()
    async with two_hops(serve=send_end_and_reset) as hops:
        source, _ = await hops.connection()
        source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await until(lambda: sent.is_set() and hops.client.active_streams == 0)

        assert await source.receive_all() == data


@trio_test
async def test_an_end_of_data_and_a_reset_in_one_write_end_the_connection() -> None:
    async def end_and_reset(request: TunnelRequest) -> None:
        stream = request.accept([])
        hops.server._connection._core.end(stream.stream_id)
        hops.server._connection._core.reset(stream.stream_id, ErrorCode.NO_ERROR)
        hops.server._connection.streams.flush()

    async with two_hops(serve=end_and_reset) as hops:
        source, _ = await hops.connection()
        assert await source.receive() == b""

        await source.send(b"more")
        assert await hops.result("out one:80") == "send: destination disconnected before all data was written"
        assert hops.client.active_streams == 0


@trio_test
async def test_a_reader_that_sleeps_stops_nobody_else() -> None:
    async with two_hops(TunnelSettings(stream_window=MIB, connection_window=8 * MIB)) as hops:
        slow_source, slow_destination = await hops.connection("slow")
        quick_source, quick_destination = await hops.connection("quick")
        sent = 0
        with trio.move_on_after(0.3):
            while True:
                await slow_source.send(bytes(65_536))
                sent += 65_536
        for _ in range(20):
            await quick_source.send(bytes(MIB // 2))
            assert len(await quick_destination.receive_exactly(MIB // 2)) == MIB // 2

        assert sent >= MIB
        slow_source.end()
        got = await slow_destination.receive_all()
        assert len(got) == hops.traffic["out slow:80"].to_destination


@drivers
@trio_test
async def test_100_streams_share_one_tunnel(in_front: bool) -> None:
    async def one(hops: TwoHops, number: int) -> None:
        source, destination = await hops.connection(f"n{number}")
        data = bytes([number]) * (1000 * number + 1)
        await source.send(data)
        assert await destination.receive_exactly(len(data)) == data
        await destination.send(data)
        destination.end()
        assert await source.receive_all() == data
        source.close()
        destination.close()

    async with two_hops(in_front=in_front) as hops:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, hops, number)
        await until(lambda: not (hops.client.active_streams or hops.server.active_streams))


@trio_test
async def test_data_sent_before_the_answer_is_kept() -> None:
    answer_now = trio.Event()

    async def serve(request: TunnelRequest) -> None:
        await answer_now.wait()
        await hops.serve(request)

    async with two_hops(serve=serve) as hops:
        source, destination = await hops.connection()
        await source.send(b"early")
        source.end()
        await trio.sleep(0.01)
        answer_now.set()
        assert await destination.receive_all() == b"early"


@pytest.mark.parametrize(
    "end", [lambda hops: hops.client.end(Revoked()), lambda hops: hops.server.end(Revoked())]
)
@trio_test
async def test_an_aborted_tunnel_resets_its_applications(end: Callable[[TwoHops], None]) -> None:
    async with two_hops() as hops:
        source, destination = await hops.connection()
        await source.send(b"x")
        await destination.receive_exactly(1)
        end(hops)

        await source.expect_reset()
        await destination.expect_reset()
        told = {await hops.result("out one:80"), await hops.result("in one:80")}
        assert "connection closed: peer certificate revoked by CRL" in told
        assert None not in told


def test_tunnels_cancelled_anywhere_leave_nothing() -> None:
    async def scenario() -> None:
        async with two_hops() as hops:
            source, destination = await hops.connection()
            await source.send(b"x")
            await destination.receive_exactly(1)
            source.end()
            await destination.receive()
            destination.end()
            await source.receive()
            hops.client.release_when_idle()
            await hops.client.ended.wait()

    assert cancelled_everywhere_now(scenario) > 20


@trio_test(autojump=True)
async def test_a_silent_peer_is_noticed_by_both_roles() -> None:
    for role in (ClientTunnel, ServerTunnel):
        async with trio.open_nursery() as nursery:
            engine = Engine()
            await nursery.start(engine.run)
            near, far = await tls_pair()
            ours, theirs = (near, far) if role is ClientTunnel else (far, near)
            began = trio.current_time()
            with theirs:
                if role is ClientTunnel:
                    await ClientTunnel(engine, ours, TunnelSettings()).run()
                else:
                    await ServerTunnel(engine, ours, TunnelSettings()).run(never_asked)

            assert 30 <= trio.current_time() - began <= 32
            assert engine.registered == 0
            nursery.cancel_scope.cancel()


@trio_test(autojump=True)
async def test_an_idle_tunnel_that_answers_pings_lives_on() -> None:
    async with two_hops() as hops:
        await trio.sleep(300)

        assert hops.client.is_usable


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n" + bytes(100), b""])
@trio_test
async def test_a_peer_that_speaks_no_http2_gets_a_goaway(junk: bytes) -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        near, far = await tls_pair()
        tunnel = ServerTunnel(engine, far, TunnelSettings())
        with near:
            near.write(junk) if junk else near.close()
            with trio.fail_after(5):
                await tunnel.run(never_asked)
            if junk:
                got = near.recv(10_000)
                while b"\x07\0\0\0\0\0" not in got:
                    got += near.recv(10_000)
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_tunnel_that_is_lost_before_it_runs_has_nothing_to_run() -> None:
    engine = Engine(in_front=False)
    near, far = await tls_pair()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        tunnel = ClientTunnel(engine, near, TunnelSettings())
        tunnel.end(SystemFailure(errno.ECONNRESET))

        await tunnel.run()

        assert engine.registered == 0
        assert near.fileno() == -1
        nursery.cancel_scope.cancel()
    far.close()
