import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, Counted, tcp_pair, until
from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.model.ending import (
    ApplicationReset,
    Ending,
    Failure,
    PeerSilent,
    Revoked,
    StreamReset,
    TransportEnded,
    TunnelLost,
)
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import SocketEnd, StreamEnd, StreamReader, relay
from ztunnel_trio.observe.words import error_text

# -- a socket and a stream that does as it is told


class FakeStream:
    """A stream with a script: how much room, what it fails with."""

    def __init__(self) -> None:
        self.reader: StreamReader | None = None
        self.attached = trio.Event()
        self.sent = bytearray()
        self.space = 1 << 20
        self.has_ended = False
        self.end_failure: Failure | None = None
        self.gone = False
        self.reset_code: int | None = None
        self.closed = False
        self.held = bytearray()

    def attach(self, reader: StreamReader) -> None:
        self.reader = reader
        self.attached.set()

    def flush(self) -> None:
        assert self.reader is not None
        if self.held:
            taken = self.reader.take(memoryview(bytes(self.held)))
            del self.held[:taken]

    def room(self) -> int:
        return 0 if self.gone else self.space

    def send(self, chunk: memoryview, length: int) -> None:
        self.sent += chunk[9 : 9 + length]
        self.space -= length

    def end(self) -> Failure | None:
        self.has_ended = True
        return self.end_failure

    @property
    def is_gone(self) -> bool:
        return self.gone

    @property
    def kept(self) -> int:
        return len(self.held)

    def reset(self, code: int) -> None:
        self.reset_code = code

    def close(self) -> None:
        self.closed = True


class Tunnelled:
    def __init__(self, *, is_outbound: bool) -> None:
        self.is_outbound = is_outbound
        app, self.sock = tcp_pair()
        self.app = App(app)
        self.stream = FakeStream()
        self.traffic = Counted()
        self.ending: Ending | None = None
        self.ended = trio.Event()

    @property
    def text(self) -> str | None:
        assert self.ending is not None
        return error_text(self.ending)

    @property
    def reader(self) -> StreamReader:
        assert self.stream.reader is not None
        return self.stream.reader

    async def run(self, engine: Engine) -> None:
        socket_end, stream_end = SocketEnd(self.sock), self.stream
        if self.is_outbound:
            self.ending = await relay(engine, socket_end, stream_end, self.traffic)
        else:
            self.ending = await relay(engine, stream_end, socket_end, self.traffic)
        self.ended.set()


@asynccontextmanager
async def tunnelled(*, is_outbound: bool = True) -> AsyncIterator[Tunnelled]:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        pair = Tunnelled(is_outbound=is_outbound)
        try:
            nursery.start_soon(pair.run, engine)
            await pair.stream.attached.wait()
            yield pair
            with trio.fail_after(5):
                await pair.ended.wait()
            assert pair.stream.closed
        finally:
            pair.app.close()
            pair.sock.close()
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


@trio_test
async def test_no_room_stops_reading_and_resuming_goes_on() -> None:
    async with tunnelled() as pair:
        pair.stream.space = 3
        await pair.app.send(b"abcdef")
        await until(lambda: pair.stream.sent == b"abc")
        await trio.sleep(0.005)
        assert pair.stream.sent == b"abc"
        pair.stream.space = 10
        pair.reader.resume()
        assert pair.stream.sent == b"abcdef"
        assert pair.traffic.to_destination == 6
        pair.app.end()
        pair.reader.ended()
    assert pair.stream.has_ended
    assert pair.text is None


@pytest.mark.parametrize(
    ("is_outbound", "text"),
    [
        (True, "send: destination disconnected before all data was written"),
        (False, "receive: client disconnected before all data was written"),
    ],
)
@trio_test
async def test_bytes_for_a_stream_that_is_gone_are_an_error(is_outbound: bool, text: str) -> None:
    async with tunnelled(is_outbound=is_outbound) as pair:
        pair.stream.gone = True
        pair.reader.ended()
        await pair.app.send(b"too late")
    assert pair.text == text


@trio_test
async def test_an_end_for_a_stream_that_is_gone_is_none() -> None:
    async with tunnelled() as pair:
        pair.stream.gone = True
        pair.reader.ended()
        pair.app.end()
    assert pair.text is None


INTERNAL = "io error: protocol error: unexpected internal error encountered"


@pytest.mark.parametrize(
    ("is_outbound", "failure", "text"),
    [
        (True, StreamReset(8), "while closing connection: send: io error: broken pipe"),
        (False, StreamReset(8), "while closing connection: receive: io error: broken pipe"),
        (True, StreamReset(2), f"while closing connection: send: {INTERNAL}"),
        (False, StreamReset(2), f"send: {INTERNAL}"),
        (True, TunnelLost(TransportEnded()),
         "while closing connection: send: io error: stream closed because of a broken pipe"),
        (True, TunnelLost(PeerSilent()), "while closing connection: send: io error: ping timeout"),
        (True, TunnelLost(Revoked()), "connection closed: peer certificate revoked by CRL"),
        (True, StreamReset(0),
         "while closing connection: send: io error: protocol error: not a result of an error"),
        (True, StreamReset(10), None),
    ],
)  # fmt: skip
@trio_test
async def test_a_failed_stream_resets_the_socket_and_is_logged(
    is_outbound: bool, failure: Failure, text: str | None
) -> None:
    async with tunnelled(is_outbound=is_outbound) as pair:
        pair.stream.gone = True
        pair.reader.failed(failure)
        with pytest.raises(ConnectionResetError):
            await pair.app.receive()
    assert pair.text == text


@trio_test
async def test_an_application_that_only_writes_into_a_full_window_is_told_of_a_loss() -> None:
    async with tunnelled() as pair:
        pair.stream.space = 0
        await pair.app.send(bytes(100_000))
        pair.reader.failed(TunnelLost(TransportEnded()))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await pair.app.send(bytes(64 << 20))


@trio_test
async def test_what_came_before_a_failure_goes_first_to_who_reads_it() -> None:
    async with tunnelled() as pair:
        data = random.Random(4).randbytes(6 << 20)
        taken = pair.reader.take(memoryview(data))
        pair.stream.held += data[taken:]
        pair.stream.gone = True
        pair.reader.failed(TunnelLost(TransportEnded()))
        assert await pair.app.receive_exactly(len(data)) == data
        with pytest.raises(ConnectionResetError):
            await pair.app.receive()


@trio_test
async def test_who_reads_nothing_is_told_within_a_second_all_the_same() -> None:
    async with tunnelled() as pair:
        data = bytes(6 << 20)
        taken = pair.reader.take(memoryview(data))
        pair.stream.held += data[taken:]
        pair.stream.gone = True
        pair.reader.failed(TunnelLost(TransportEnded()))
        with trio.fail_after(1):
            await pair.ended.wait()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await pair.app.send(bytes(1))


@trio_test
async def test_who_is_slow_gets_all_that_came_before_a_reset_of_the_stream() -> None:
    async with tunnelled() as pair:
        data = bytes(range(256)) * (6 << 12)
        taken = pair.reader.take(memoryview(data))
        pair.stream.held += data[taken:]
        pair.stream.gone = True
        pair.reader.failed(StreamReset(8))
        await trio.sleep(0.8)  # longer than one is waited for whose bytes are not whole

        assert await pair.app.receive_exactly(len(data)) == data
        with pytest.raises(ConnectionResetError):
            await pair.app.receive()


@pytest.mark.parametrize("is_blocked", [False, True])
@trio_test
async def test_a_reset_of_the_application_is_seen_while_the_stream_has_no_room(is_blocked: bool) -> None:
    async with tunnelled() as pair:
        if is_blocked:
            pair.stream.space = 0
            await pair.app.send(b"waiting")
        pair.app.reset()
    assert pair.stream.reset_code == 10
    assert pair.ending == ApplicationReset()


@trio_test
async def test_a_relay_that_is_cancelled_resets_its_application() -> None:
    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        app, sock = tcp_pair()
        with app:
            with trio.move_on_after(0.01):
                await relay(engine, SocketEnd(sock), FakeStream(), Counted())
            with pytest.raises(ConnectionResetError):
                app.recv(1)
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_last_word_that_cannot_be_said_is_an_error() -> None:
    async with tunnelled() as pair:
        pair.stream.gone = True
        pair.stream.end_failure = TunnelLost(TransportEnded())
        pair.reader.ended()
        pair.app.end()
    assert pair.text == "while closing connection: send: io error: stream closed because of a broken pipe"


@trio_test
async def test_a_socket_reset_resets_the_stream_with_connect_error() -> None:
    async with tunnelled() as pair:
        pair.app.reset()
    assert pair.stream.reset_code == 10
    assert pair.text is None


@trio_test
async def test_a_full_socket_takes_the_rest_when_it_can() -> None:
    async with tunnelled() as pair:
        data = random.Random(3).randbytes(4 << 20)
        taken = pair.reader.take(memoryview(data))
        assert 0 < taken < len(data)
        assert pair.reader.take(memoryview(data)[taken:]) == 0
        pair.stream.held += data[taken:]
        assert await pair.app.receive_exactly(len(data)) == data
        assert pair.traffic.to_source == len(data)
        pair.reader.ended()
        pair.app.end()


@trio_test
async def test_a_bug_in_a_pump_ends_its_connection_and_is_raised() -> None:
    class BadStream(FakeStream):
        def send(self, chunk: memoryview, length: int) -> None:
            raise ValueError("a bug")

    async with trio.open_nursery() as nursery:
        engine = Engine()
        await nursery.start(engine.run)
        app, sock = tcp_pair()
        stream: StreamEnd = BadStream()
        with app:
            app.send(b"x")
            with pytest.raises(ValueError, match="a bug"):
                await relay(engine, SocketEnd(sock), stream, Counted())
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


@trio_test
async def test_two_streams_are_no_connection() -> None:
    with pytest.raises(WeBrokeProtocol):
        await relay(Engine(), FakeStream(), FakeStream(), Counted())
