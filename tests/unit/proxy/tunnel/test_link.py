"""The bytes of a tunnel, over real TLS."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.lowlevel

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import tls_pair, until
from ztunnel_trio.model.ending import Bug, Loss, OtherFailure, SystemFailure, TransportEnded, TunnelLost
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.tls.memory import StreamLost
from ztunnel_trio.proxy.tunnel.link import Link, loss_of


class Above:
    """Uses so many bytes a turn, and remembers what it is told."""

    def __init__(self) -> None:
        self.share = 1 << 20
        self.got: list[bytes] = []
        self.losses: list[Loss] = []
        self.unblocks = 0
        self.is_not_heard = False
        self.raises: Exception | None = None

    def received(self, view: memoryview) -> int:
        if self.raises is not None:
            raise self.raises
        self.got.append(bytes(view[: self.share]))
        return min(self.share, len(view))

    def unblocked(self) -> None:
        self.unblocks += 1

    def not_heard(self) -> None:
        self.is_not_heard = True

    def lost(self, cause: Loss) -> None:
        self.losses.append(cause)


@dataclass
class Made:
    link: Link
    above: Above
    peer: ssl.SSLSocket

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.peer.send(view) :]
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.peer)


@asynccontextmanager
async def linked() -> AsyncIterator[Made]:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        near, far = await tls_pair()
        above = Above()
        link = Link(engine, near, above)
        link.start()
        with far:
            yield Made(link, above, far)
        link.stop()
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


@trio_test
async def test_what_is_left_of_a_read_is_offered_again_before_anything_is_read() -> None:
    async with linked() as made:
        made.above.share = 7
        await made.send(b"0123456789" * 10)
        await until(lambda: len(b"".join(made.above.got)) == 100)

        assert b"".join(made.above.got) == b"0123456789" * 10
        assert [len(piece) for piece in made.above.got] == [7] * 14 + [2]


@trio_test
async def test_an_end_is_told_behind_what_came_before_it() -> None:
    async with linked() as made:
        made.above.share = 1
        await made.send(b"0123456789")
        made.peer.close()
        await until(lambda: bool(made.above.losses))

        assert b"".join(made.above.got) == b"0123456789"
        assert made.above.losses == [TransportEnded()]


@trio_test
async def test_what_comes_once_it_is_finishing_is_thrown_away() -> None:
    async with linked() as made:
        made.above.share = 1
        await made.send(b"0123456789")
        await until(lambda: bool(made.above.got))
        made.link.finish()
        made.link.write(b"nothing goes out any more")
        await made.send(b"more")
        made.peer.close()
        await until(lambda: bool(made.above.losses))

        assert len(b"".join(made.above.got)) <= 10


@trio_test
async def test_what_is_gathered_is_one_record() -> None:
    async with linked() as made:
        for _ in range(100):
            made.link.write(b"x")
        await until(lambda: made.peer.pending() > 0 or _reads(made.peer) == b"x" * 100)


def _reads(sock: ssl.SSLSocket) -> bytes:
    try:
        return sock.recv(1000)
    except ssl.SSLWantReadError:
        return b""


@trio_test
async def test_a_peer_that_reads_nothing_is_told_of_when_too_much_waits() -> None:
    async with linked() as made:
        for _ in range(200):
            made.link.write(bytes(65_536))
        assert made.link.is_blocked
        await made.send(b"?")
        await until(lambda: made.above.is_not_heard)


@trio_test
async def test_who_was_blocked_is_told_when_it_is_written() -> None:
    async with linked() as made:
        while not made.link.is_blocked:
            made.link.write(bytes(65_536))
        while not made.above.unblocks:
            _reads(made.peer)
            await trio.lowlevel.checkpoint()

        assert not made.link.is_blocked


@trio_test
async def test_a_pump_that_raises_costs_its_own_tunnel() -> None:
    async with linked() as made:
        made.above.raises = KeyError("x")
        await made.send(b"?")
        await until(lambda: bool(made.above.losses))

        assert made.above.losses == [Bug("KeyError('x')")]


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (ssl.SSLEOFError(), TransportEnded()),
        (ssl.SSLZeroReturnError(), TransportEnded()),
        (ConnectionResetError(104, "reset"), SystemFailure(104)),
        (StreamLost(TunnelLost(SystemFailure(110))), SystemFailure(110)),
        (TimeoutError("no number"), OtherFailure("no number")),
    ],
)
def test_what_a_transport_raises_says_why_the_tunnel_is_lost(error: OSError, loss: Loss) -> None:
    assert loss_of(error) == loss
