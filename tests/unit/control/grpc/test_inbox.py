"""What has arrived on a stream: read whole or in part, up to its end, with credit as the reader likes it."""

from dataclasses import dataclass, field
from typing import cast

import grpclib.protocol
import pytest
import trio
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import StreamClosedError
from trio.testing import wait_all_tasks_blocked

from tests.fakes.trio_test import trio_test
from ztunnel_trio.control.grpc.inbox import WINDOW_BYTES, Alarm, Inbox

FRAME = 16 * 1024


@dataclass(eq=False)
class Wire:
    """A stream and its connection, as far as an inbox uses them: the window the server sees."""

    id: int = 1
    is_closed: bool = False
    windows: dict[int | None, int] = field(default_factory=lambda: {None: WINDOW_BYTES, 1: WINDOW_BYTES})
    buffer: Inbox | None = None
    left: int = 0

    @property
    def _h2_connection(self) -> "Wire":
        return self

    @property
    def connection(self) -> "Wire":
        return self

    def increment_flow_control_window(self, size: int, stream_id: int | None = None) -> None:
        if self.is_closed and stream_id is not None:
            raise StreamClosedError(stream_id)
        self.windows[stream_id] += size

    def flush(self) -> None:
        """The server hears of its credit."""
        self.send(0)

    def send(self, size: int) -> None:
        """Send so much more, in frames, as soon as the windows allow."""
        self.left += size
        assert self.buffer is not None
        while frame := min(self.left, FRAME, *self.windows.values()):
            for each in self.windows:
                self.windows[each] -= frame
            self.left -= frame
            self.buffer.add(bytes(frame), frame)


def made() -> tuple[Wire, Alarm, Inbox]:
    wire, alarm = Wire(), Alarm()
    alarm.inbox = Inbox(cast(grpclib.protocol.Stream, wire))
    return wire, alarm, alarm.inbox


@trio_test
async def test_bytes_come_in_order_whatever_is_asked_for() -> None:
    _, _, inbox = made()
    for data in (b"abcde", b"fgh", b"ij"):
        inbox.add(data, len(data))

    taken = [await inbox.take(1, 2), await inbox.take(4, 4), await inbox.take(1, 100)]

    assert taken == [b"ab", b"cdef", b"ghij"]


@trio_test
async def test_a_reader_waits_for_the_least_it_can_use() -> None:
    _, _, inbox = made()
    taken: list[bytes] = []

    async def read() -> None:
        taken.append(await inbox.take(5, 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        inbox.add(b"abc", 3)
        await wait_all_tasks_blocked()
        assert not taken
        inbox.add(b"def", 3)

    assert taken == [b"abcde"]


@trio_test
async def test_a_cancelled_reader_has_taken_nothing() -> None:
    _, _, inbox = made()
    inbox.add(b"abc", 3)
    with trio.move_on_after(0):
        await inbox.take(5, 5)
    inbox.add(b"de", 2)

    assert await inbox.take(5, 5) == b"abcde"


@trio_test
async def test_at_the_end_there_is_what_is_left_and_then_nothing() -> None:
    _, alarm, inbox = made()
    inbox.add(b"abc", 3)
    inbox.eof()
    alarm.cancel(StreamTerminatedError("reset behind the end"))

    assert [await inbox.take(5, 5), await inbox.take(5, 5)] == [b"abc", b""]


@trio_test
async def test_a_failure_wakes_the_reader_but_not_before_it_has_what_came() -> None:
    _, alarm, inbox = made()
    inbox.add(b"abc", 3)
    alarm.cancel(StreamTerminatedError("first"))
    alarm.cancel(StreamTerminatedError("second"))

    assert await inbox.take(1, 100) == b"abc"
    with pytest.raises(StreamTerminatedError, match="first"):
        await inbox.take(1, 100)


@trio_test
async def test_a_waiting_reader_hears_of_a_failure() -> None:
    _, alarm, inbox = made()

    async def fail() -> None:
        await wait_all_tasks_blocked()
        alarm.cancel(StreamTerminatedError("gone"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        with pytest.raises(StreamTerminatedError, match="gone"):
            await inbox.take(1, 1)


@pytest.mark.parametrize(
    "sizes", [(WINDOW_BYTES,), (FRAME,), (WINDOW_BYTES, FRAME), (FRAME, WINDOW_BYTES, 1024)]
)
@trio_test
async def test_the_server_sends_no_more_ahead_than_it_may_and_never_starves(sizes: tuple[int, ...]) -> None:
    wire, _, inbox = made()
    total = 4 * WINDOW_BYTES
    wire.send(total)
    read = turn = 0
    while read < total:
        most = sizes[turn // 10 % len(sizes)]
        read += len(await inbox.take(1, most, under_way=most))
        turn += 1
        arrived = total - wire.left
        if turn % 10 > 1 and arrived - read < most:  # what was under way has been read: the new limit holds
            assert wire.windows[1] <= most

    assert (read, wire.left) == (total, 0)


@trio_test
async def test_what_had_arrived_of_a_closed_stream_gives_credit_to_its_connection() -> None:
    wire, _, inbox = made()
    wire.send(WINDOW_BYTES)
    wire.is_closed = True

    inbox.eof()

    assert [len(await inbox.take(1, WINDOW_BYTES)) for _ in "12"] == [WINDOW_BYTES, 0]
    assert wire.windows == {None: WINDOW_BYTES, 1: 0}
