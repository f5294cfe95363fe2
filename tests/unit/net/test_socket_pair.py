import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, Counted, tcp_pair, until
from ztunnel_trio.model.ending import ApplicationReset, Ending
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import SocketEnd, relay
from ztunnel_trio.observe.words import error_text

drivers = pytest.mark.parametrize("in_front", [True, False])


class Passthrough:
    """A relay between two sockets, its applications, and what became of it."""

    def __init__(self) -> None:
        source, captured = tcp_pair()
        dialled, destination = tcp_pair()
        self.source, self.destination = App(source), App(destination)
        self.captured, self.dialled = captured, dialled
        self.traffic = Counted()
        self.ended = trio.Event()
        self.ending: Ending | None = None

    async def run(self, engine: Engine) -> None:
        self.ending = await relay(engine, SocketEnd(self.captured), SocketEnd(self.dialled), self.traffic)
        self.ended.set()

    @property
    def text(self) -> str | None:
        assert self.ending is not None
        return error_text(self.ending)

    def close(self) -> None:
        for sock in (self.source.sock, self.destination.sock, self.captured, self.dialled):
            sock.close()


@asynccontextmanager
async def passthrough(*, in_front: bool = True) -> AsyncIterator[Passthrough]:
    async with trio.open_nursery() as nursery:
        engine = Engine(in_front=in_front)
        await nursery.start(engine.run)
        pair = Passthrough()
        try:
            nursery.start_soon(pair.run, engine)
            yield pair
            with trio.fail_after(5):
                await pair.ended.wait()
        finally:
            pair.close()
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


@drivers
@trio_test
async def test_bytes_go_both_ways_between_sockets(in_front: bool) -> None:
    data = random.Random(1).randbytes(8 << 20)

    async def send(app: App) -> None:
        await app.send(data)
        app.end()

    async with passthrough(in_front=in_front) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(send, pair.source)
        nursery.start_soon(send, pair.destination)
        assert await pair.destination.receive_all() == data
        assert await pair.source.receive_all() == data
    assert pair.text is None
    assert pair.traffic == Counted(len(data), len(data))


@trio_test
async def test_a_slow_reader_gets_everything() -> None:
    async with passthrough() as pair:
        sent = 0
        with trio.move_on_after(0.1):
            while True:
                await pair.source.send(bytes(100_000))
                sent += 100_000
        pair.source.end()
        got = await pair.destination.receive_all()
        pair.destination.end()
    assert len(got) == pair.traffic.to_destination >= sent


@trio_test
async def test_the_end_of_one_direction_leaves_the_other() -> None:
    async with passthrough() as pair:
        pair.source.end()
        assert await pair.destination.receive() == b""
        await pair.destination.send(b"late")
        assert await pair.source.receive_exactly(4) == b"late"
        pair.destination.end()
    assert pair.text is None


@pytest.mark.parametrize("forwards", [True, False])
@trio_test
async def test_a_reset_is_passed_on_and_no_error(forwards: bool) -> None:
    async with passthrough() as pair:
        one, other = (pair.source, pair.destination) if forwards else (pair.destination, pair.source)
        await one.send(b"x")
        await other.receive_exactly(1)
        one.reset()
        with pytest.raises(ConnectionResetError):
            await other.receive()
    assert pair.text is None


@trio_test
async def test_a_reset_after_the_end_is_passed_on() -> None:
    async with passthrough() as pair:
        pair.source.end()
        assert await pair.destination.receive() == b""
        pair.source.reset()
        await until(lambda: bool(pair.destination.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
    assert pair.text is None


def test_a_cancelled_relay_leaves_nothing() -> None:
    async def scenario() -> None:
        pair, engine = Passthrough(), Engine()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(engine.run)
                nursery.start_soon(pair.run, engine)
                await pair.source.send(b"x")
                await pair.destination.receive_exactly(1)
                pair.source.end()
                await pair.destination.receive()
                pair.destination.end()
                await pair.source.receive()
                await pair.ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            assert engine.registered == 0
            pair.close()

    assert cancelled_everywhere_now(scenario) > 5


@trio_test
async def test_a_reset_behind_bytes_that_nobody_takes_is_passed_on() -> None:
    async with passthrough() as pair:
        with trio.move_on_after(0.1):
            while True:
                await pair.source.send(bytes(100_000))  # until everything on the way is full
        pair.source.reset()
        with pytest.raises(ConnectionResetError):
            await pair.destination.receive_all()
    assert pair.ending == ApplicationReset()


@trio_test
async def test_a_relay_that_is_cancelled_resets_both() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        (source, captured), (dialled, destination) = tcp_pair(), tcp_pair()
        with source, destination:
            with trio.move_on_after(0.01):
                await relay(engine, SocketEnd(captured), SocketEnd(dialled), Counted())
            for each in (source, destination):
                with pytest.raises(ConnectionResetError):
                    each.recv(1)
        nursery.cancel_scope.cancel()
