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
from grpclib.exceptions import StreamTerminatedError
from grpclib.utils import Wrapper
from h2.exceptions import StreamClosedError

WINDOW_BYTES: Final = 256 * 1024
"""Under way at most: worked through in 1.5 ms. With 64 KiB a large message costs half as much again."""


class Inbox(grpclib.protocol.Buffer):
    """The DATA of a stream, from its opening to its end.

    It knows the connection but neither its stream nor its alarm: a connection that is over is to go at once,
    with the 256 KiB its TLS keeps, and not when the garbage collector comes by.
    """

    def __init__(self, stream: grpclib.protocol.Stream) -> None:
        super().__init__(_no_credit)
        self._stream_id = stream.id
        self._connection = stream.connection
        self._h2_connection = stream._h2_connection
        self._frames: deque[tuple[bytes | memoryview, int]] = deque()  # with what they took of the window
        self._size = 0
        self._withheld = 0
        self._failure: str | None = None
        self._news = trio.Event()
        stream.buffer = self

    def add(self, data: bytes, ack_size: int) -> None:
        """A frame has arrived, which took so much of the window (RFC 9113 6.9.1)."""
        self._frames.append((data, ack_size))
        self._size += len(data)
        self._news.set()

    def eof(self) -> None:
        """The stream has ended regularly."""
        self._eof = True
        self._news.set()

    def fail(self, reason: str) -> None:
        """The stream has failed; the first reason counts."""
        self._failure = self._failure or reason
        self._news.set()

    @property
    def has_ended(self) -> bool:
        """Whether the stream has ended regularly; what had arrived may be unread."""
        return self._eof

    def unacked_size(self) -> int:
        """What to return to the connection when the stream is forgotten; nobody else uses that one."""
        return 0

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
            if self._failure is not None:
                raise StreamTerminatedError(self._failure)
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
        self._h2_connection.increment_flow_control_window(due)
        with suppress(StreamClosedError):  # closed to new frames; what had arrived is still read
            self._h2_connection.increment_flow_control_window(due, self._stream_id)
        self._connection.flush()


class Alarm(Wrapper):
    """Interrupts whoever waits for a stream that has failed, on the side of asyncio and on ours."""

    def __init__(self) -> None:
        super().__init__()
        self.inbox: Inbox | None = None

    def cancel(self, error: Exception) -> None:
        if self.inbox is not None:
            self.inbox.fail(str(error))
        super().cancel(error)


def _no_credit(_size: int) -> None:
    """Stand in for grpclib's way to return credit."""
