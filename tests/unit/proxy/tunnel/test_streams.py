"""The streams of a tunnel on an HTTP/2 connection, with a link and an engine that only remember."""

import time
from collections.abc import Callable

import pytest

from tests.fakes.http2 import CONNECT, FrameFactory
from ztunnel_trio.model.ending import By, Failure, NotProcessed, StreamReset, TransportEnded, TunnelLost
from ztunnel_trio.net.engine import End
from ztunnel_trio.proxy.tunnel.stream import TunnelStream
from ztunnel_trio.proxy.tunnel.streams import TunnelStreams
from ztunnel_trio.proxy.tunnel.turn import EVENTS, REQUEST_EVENTS, TASK_EVENTS
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.budgets import ALLOWANCES, Allowance
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.connection import Http2Connection
from ztunnel_trio.wire.http2.settings import Http2Settings

make = FrameFactory()
NO_BUDGETS = {kind: Allowance(10**9, 10**9) for kind in ALLOWANCES}


class Link:
    """Remembers what is written; takes everything until it is blocked."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.is_blocked = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def broke(self, error: Exception) -> None:
        raise error


class Engine:
    """Remembers who asked for another round."""

    def __init__(self) -> None:
        self.later: list[End] = []

    def again(self, end: End) -> None:
        self.later.append(end)

    def round(self) -> None:
        later, self.later = self.later, []
        for end in later:
            end.go_on()


class Writer:
    """A reader that writes a byte whenever it is told that there may be room, and remembers the rest."""

    def __init__(self, stream: TunnelStream) -> None:
        self.stream = stream
        self.resumed = 0
        self.failures: list[Failure] = []
        self.got = b""
        self.has_ended = False

    def take(self, data: memoryview) -> int:
        self.got += data
        return len(data)

    def ended(self) -> None:
        self.has_ended = True

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)

    def resume(self) -> None:
        self.resumed += 1
        while self.stream.room() > 0:
            self.stream.send(memoryview(bytearray(10)), 1)


class Server:
    """The streams of a server's tunnel, asked for by a client that writes its frames by hand."""

    def __init__(self, *, initial_window: int = 65_535) -> None:
        self.engine, self.link = Engine(), Link()
        self.core = Http2Connection(Http2Settings(is_client=False, max_streams=1000, allowances=NO_BUDGETS))
        self.asked: list[int] = []
        self.changes = 0
        self.streams = TunnelStreams(self.engine, self.core, self.link, self.heard, self.changed)  # type: ignore[arg-type]
        self.say(make.preface().replace(make.settings(), make.settings({4: initial_window})))

    def heard(self, event: http2.Event) -> None:
        if isinstance(event, http2.TunnelRequested):
            self.asked.append(event.stream_id)

    def changed(self) -> None:
        self.changes += 1

    def say(self, data: bytes) -> int:
        """Hand in all of it; returns how many turns that took."""
        view, turns = memoryview(data), 0
        while view:
            view, turns = view[self.streams.received(view) :], turns + 1
        return turns

    def open(self, count: int) -> list[Writer]:
        factory, writers = FrameFactory(), []
        for number in range(count):
            self.say(factory.headers(2 * number + 1, CONNECT))
            stream = self.streams.add(self.asked.pop())
            self.core.accept(stream.stream_id, [])
            writer = Writer(stream)
            stream.attach(writer)
            writers.append(writer)
        self.streams.flush()
        return writers


# -- turns


def test_small_data_is_worked_off_in_turns_and_loses_nothing() -> None:
    server = Server()
    [writer] = server.open(1)

    assert server.say(make.data(1, b"x") * 2000) >= 2000 // (2 * EVENTS)
    assert writer.got == b"x" * 2000


def test_many_requests_at_once_are_worked_off_in_turns() -> None:
    server, factory = Server(), FrameFactory()
    requests = b"".join([factory.headers(stream_id, CONNECT) for stream_id in range(1, 201, 2)])

    assert server.say(requests) >= 100 * REQUEST_EVENTS // (2 * EVENTS)
    assert server.asked == list(range(1, 201, 2))


def test_many_resets_at_once_are_worked_off_in_turns() -> None:
    server = Server()
    writers = server.open(100)
    resets = b"".join([make.reset(stream_id) for stream_id in range(1, 201, 2)])

    assert server.say(resets) >= 100 * TASK_EVENTS // (2 * EVENTS)
    assert all(writer.failures == [StreamReset(ErrorCode.CANCEL)] for writer in writers)
    assert len(server.streams) == 0


# -- room


def test_a_stream_without_room_is_resumed_when_its_window_opens() -> None:
    server = Server(initial_window=1)
    first, second = server.open(2)
    first.resume()
    second.resume()
    server.say(make.window_update(1, 1))

    assert (first.resumed, second.resumed) == (2, 1)


def test_only_those_with_room_are_resumed() -> None:
    server = Server(initial_window=1)
    writers = server.open(50)
    for writer in writers:
        writer.resume()
    server.say(make.window_update(0, 1))

    assert [writer.resumed for writer in writers] == [1] * 50


def test_waiting_streams_are_looked_at_once_a_turn_whatever_the_number_of_frames() -> None:
    """128 KiB of WINDOW_UPDATE against 200 streams that wait: the loop was held for seconds."""
    server = Server(initial_window=1)
    for writer in server.open(200):
        writer.resume()
    flood = memoryview(make.window_update(0, 1) * (131_072 // 13))
    longest = 0.0
    while flood:
        began = time.thread_time()
        flood = flood[server.streams.received(flood) :]
        longest = max(longest, time.thread_time() - began)

    assert longest < 0.05  # a turn and a look at each; a slow machine has its own pace


def test_many_with_room_are_resumed_in_turns() -> None:
    server = Server(initial_window=1)
    writers = server.open(200)
    for writer in writers:
        writer.resume()
    server.say(make.settings({4: 2}))
    at_once = sum(writer.resumed - 1 for writer in writers)
    while server.engine.later:
        server.engine.round()

    assert 0 < at_once <= EVENTS // TASK_EVENTS
    assert [writer.resumed for writer in writers] == [2] * 200


def test_nobody_is_resumed_while_the_link_is_blocked() -> None:
    server = Server(initial_window=1)
    [writer] = server.open(1)
    writer.resume()
    server.link.is_blocked = True
    server.say(make.window_update(1, 1))
    assert writer.resumed == 1
    server.link.is_blocked = False
    server.streams.resume_all()

    assert writer.resumed == 2


# -- ends


def by_reset(server: Server) -> None:
    server.say(make.reset(1, ErrorCode.INTERNAL_ERROR))


def by_refusal(server: Server) -> None:
    server.say(make.reset(1, ErrorCode.REFUSED_STREAM))


def by_fault(server: Server) -> None:
    server.say(make.window_update(1, 0))


def by_loss(server: Server) -> None:
    server.streams.lose(TransportEnded())


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (by_reset, StreamReset(ErrorCode.INTERNAL_ERROR)),
        (by_refusal, NotProcessed(ErrorCode.REFUSED_STREAM)),
        (by_fault, StreamReset(ErrorCode.PROTOCOL_ERROR, By.US)),
        (by_loss, TunnelLost(TransportEnded())),
    ],
)
@pytest.mark.parametrize("application", ["idle", "only reads", "only writes", "waits for room"])
def test_every_end_is_told_once_whatever_the_application_does(
    end: Callable[[Server], None], failure: Failure, application: str
) -> None:
    server = Server(initial_window=1)
    [writer] = server.open(1)
    if application == "only reads":
        writer.stream.end()
    elif application == "only writes":
        server.say(make.data(1, b"all", ends=True))
    elif application == "waits for room":
        writer.resume()
    end(server)
    end_again = len(writer.failures)
    server.streams.lose(TransportEnded())

    assert writer.failures == [failure]
    assert end_again == 1
    assert writer.stream.is_gone
    assert writer.stream.room() == 0
    assert len(server.streams) == 0


def test_the_loss_of_a_tunnel_is_told_in_turns() -> None:
    server = Server()
    writers = server.open(200)
    server.streams.lose(TransportEnded())
    at_once = sum(len(writer.failures) for writer in writers)
    rounds = 0
    while server.engine.later:
        server.engine.round()
        rounds += 1

    assert at_once <= EVENTS // TASK_EVENTS
    assert rounds >= 200 * TASK_EVENTS // EVENTS - 1
    assert all(writer.failures == [TunnelLost(TransportEnded())] for writer in writers)


def test_who_leaves_tells_the_rest_at_once() -> None:
    server = Server()
    writers = server.open(200)
    server.streams.lose(TransportEnded())
    server.streams.lose_rest()

    assert all(writer.failures for writer in writers)


def test_a_stream_lost_with_its_tunnel_finds_no_room_before_it_is_told() -> None:
    server = Server()
    writers = server.open(200)
    server.streams.lose(TransportEnded())
    last = writers[-1]

    assert (last.failures, last.stream.room()) == ([], 0)


def test_end_stream_is_the_only_clean_end() -> None:
    server = Server()
    [writer] = server.open(1)
    server.say(make.data(1, b"all", ends=True))
    writer.stream.end()

    assert (writer.got, writer.has_ended, writer.failures) == (b"all", True, [])
    assert len(server.streams) == 0
