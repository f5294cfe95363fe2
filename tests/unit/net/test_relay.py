import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.fakes.trio_test import trio_test
from tests.fakes.tunnels import App, Counted, tcp_pair, until
from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.relay import SocketEnd, StreamEnd, StreamReader, relay

# -- a socket and a stream that does as it is told


class FakeStream:
    """A stream with a script: how much room, what it fails with."""

    def __init__(self) -> None:
        self.reader: StreamReader | None = None
        self.attached = trio.Event()
        self.sent = bytearray()
        self.space = 1 << 20
        self.has_ended = False
        self.end_text: str | None = None
        self.gone = False
        self.failure_text: str | None = None
        self.reset_code: int | None = None
        self.closed = False
        self.kept = bytearray()

    def attach(self, reader: StreamReader) -> None:
        self.reader = reader
        self.attached.set()

    def flush(self) -> None:
        assert self.reader is not None
        if self.kept:
            taken = self.reader.take(memoryview(bytes(self.kept)))
            del self.kept[:taken]

    def room(self) -> int:
        return 0 if self.gone else self.space

    def send(self, chunk: memoryview, length: int) -> None:
        self.sent += chunk[9 : 9 + length]
        self.space -= length

    def end(self) -> str | None:
        self.has_ended = True
        return self.end_text

    @property
    def is_gone(self) -> bool:
        return self.gone

    def failure(self) -> str | None:
        return self.failure_text

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
        self.text: str | None = None
        self.ended = trio.Event()

    @property
    def reader(self) -> StreamReader:
        assert self.stream.reader is not None
        return self.stream.reader

    async def run(self, engine: Engine) -> None:
        socket_end, stream_end = SocketEnd(self.sock), self.stream
        if self.is_outbound:
            self.text = await relay(engine, socket_end, stream_end, self.traffic)
        else:
            self.text = await relay(engine, stream_end, socket_end, self.traffic)
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


@pytest.mark.parametrize(
    ("is_outbound", "end_text", "failure_text", "text"),
    [
        (True, "io error: broken pipe", None, "while closing connection: send: io error: broken pipe"),
        (False, "io error: broken pipe", None, "while closing connection: receive: io error: broken pipe"),
        (
            True,
            "io error: protocol error: unexpected internal error encountered",
            "protocol error: unexpected internal error encountered",
            "while closing connection: send: io error: protocol error: unexpected internal error encountered",
        ),
        (
            False,
            "io error: protocol error: unexpected internal error encountered",
            "protocol error: unexpected internal error encountered",
            "send: io error: protocol error: unexpected internal error encountered",
        ),
    ],
)
@trio_test
async def test_a_reset_stream_resets_the_socket_and_is_logged(
    is_outbound: bool, end_text: str, failure_text: str | None, text: str
) -> None:
    async with tunnelled(is_outbound=is_outbound) as pair:
        pair.stream.gone = True
        pair.stream.end_text, pair.stream.failure_text = end_text, failure_text
        pair.reader.was_reset(2)
        with pytest.raises(ConnectionResetError):
            await pair.app.receive()
    assert pair.text == text


@trio_test
async def test_a_last_word_that_cannot_be_said_is_an_error() -> None:
    async with tunnelled() as pair:
        pair.stream.gone = True
        pair.stream.end_text = "io error: stream closed because of a broken pipe"
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
        pair.stream.kept += data[taken:]
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
