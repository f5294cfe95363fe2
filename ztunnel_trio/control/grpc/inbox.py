"""What has arrived on one stream: filled by grpclib as frames come in, read from Trio.

Theory of operation. `Inbox` takes the place of grpclib's buffer, `Alarm` that of its wrapper, which tells of
the end of a stream. Nothing of asyncio lies between the two sides: a reader wakes up in the turn after the
frames were parsed. What has arrived before a stream failed is still read.

Flow control is part of it. grpclib returns credit for what was read when half the window is used up; here
the reader says how much may be under way, as all that has arrived is taken from the socket, decrypted and
parsed in one go.
"""

from collections import deque
from contextlib import suppress
from typing import Final

import grpclib.protocol
import trio
from grpclib.utils import Wrapper
from h2.exceptions import StreamClosedError

WINDOW_BYTES: Final = 256 * 1024
"""Under way at most: worked through in 1.5 ms. With 64 KiB a large message costs half as much again."""


class Alarm(Wrapper):
    """Interrupts whoever waits for a stream that has failed, on the side of asyncio and on ours."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None
        self.inbox: Inbox | None = None

    def cancel(self, error: Exception) -> None:
        self.failure = self.failure or error
        if self.inbox is not None:
            self.inbox.wake()
        super().cancel(error)


class Inbox(grpclib.protocol.Buffer):
    """The DATA of a stream, from its opening to its end."""

    def __init__(self, stream: grpclib.protocol.Stream, alarm: Alarm) -> None:
        super().__init__(_no_credit)
        self._stream = stream
        self._alarm = alarm
        self._frames: deque[tuple[bytes | memoryview, int]] = deque()  # with what they took of the window
        self._size = 0
        self._withheld = 0
        self._news = trio.Event()
        alarm.inbox = self
        stream.buffer = self

    def add(self, data: bytes, ack_size: int) -> None:
        """A frame has arrived, which took so much of the window (RFC 9113 6.9.1)."""
        self._frames.append((data, ack_size))
        self._size += len(data)
        self.wake()

    def eof(self) -> None:
        """The stream has ended regularly."""
        self._eof = True
        self.wake()

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended regularly; what had arrived may be unread."""
        return self._eof

    def unacked_size(self) -> int:
        """What to return to the connection when the stream is forgotten; nobody else uses that one."""
        return 0

    def wake(self) -> None:
        """Let the reader look again."""
        self._news.set()

    async def take(self, least: int, most: int, under_way: int = WINDOW_BYTES) -> bytes:
        """What is there, once it is at least so much; fewer bytes when the stream has ended.

        The server may send so much ahead meanwhile, and goes on sending when the next bytes are asked for:
        what was taken can be worked on before more arrives. A cancelled call has taken nothing.

        Raises:
            StreamTerminatedError: it failed, and not enough had come.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._return_credit(under_way)
        while self._size < least and not self._eof:
            if self._alarm.failure is not None:
                raise self._alarm.failure
            self._news = trio.Event()
            await self._news.wait()
        taken: list[bytes | memoryview] = []
        room = most
        while self._frames and room:
            data, credit = self._frames.popleft()
            if len(data) > room:
                self._frames.appendleft((memoryview(data)[room:], 0))
                data = memoryview(data)[:room]
            taken.append(data)
            room -= len(data)
            self._withheld += credit
        self._size -= most - room
        return b"".join(taken)

    def _return_credit(self, under_way: int) -> None:
        """Return what is more than to be withheld, by the half of what may be under way."""
        due = self._withheld - (WINDOW_BYTES - under_way)
        if due < under_way // 2:
            return
        self._withheld -= due
        connection = self._stream._h2_connection
        connection.increment_flow_control_window(due)
        with suppress(StreamClosedError):  # closed to new frames; what had arrived is still read
            connection.increment_flow_control_window(due, self._stream.id)
        self._stream.connection.flush()


def _no_credit(_size: int) -> None:
    """Stand in for grpclib's way to return credit."""
