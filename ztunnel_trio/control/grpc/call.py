"""One call: messages both ways, read in pieces.

A message is read in pieces, with a limit on the length prefix: grpclib would join up to 4 GiB in one go and
hold the loop for it. Who reads says how long a piece may be, and that much the server may send ahead.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final, TypeVar

import grpclib.client
import grpclib.const
import trio
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from ztunnel_trio.control.grpc.errors import BadMessage, BadStatus, ConnectionEnded, failure_text
from ztunnel_trio.control.grpc.inbox import WINDOW_BYTES, Alarm, Inbox
from ztunnel_trio.control.grpc.loop import from_asyncio
from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.facts.grpc import GrpcCode

T = TypeVar("T")

SENT_AT_ONCE_BYTES: Final = 64 * 1024
_PREFIX_BYTES: Final = 5  # gRPC over HTTP/2: compressed flag, 4 bytes of length


class CallStream:
    """A call whose messages go both ways. One task receives; `close`, or leaving the channel, ends it."""

    __slots__ = (
        "_alarm",
        "_inbox",
        "_is_closed",
        "_message_limit_bytes",
        "_one_at_a_time",
        "_remaining",
        "_stream",
    )

    _inbox: Inbox  # once the stream is open

    def __init__(self, stream: "grpclib.client.Stream[bytes, bytes]", message_limit_bytes: int) -> None:
        self._stream = stream
        self._message_limit_bytes = message_limit_bytes
        self._remaining = 0
        self._is_closed = False
        self._one_at_a_time = trio.Lock()  # messages: their parts must not mix
        self._alarm = stream._wrapper = Alarm()

    @property
    def answered(self) -> bool:
        """Whether the server's response headers are here, and were not a refusal."""
        return self._stream.initial_metadata is not None and not self._stream._trailers_only

    async def send_headers(self) -> None:
        """Open the stream; `Channel.open_stream` has done it."""

        async def send() -> None:
            await self._stream.send_request()
            self._inbox = self._alarm.inbox = Inbox(self._stream._stream)  # before anything can arrive

        await self._translated(send)

    async def send(self, message: bytes, *, last: bool = False) -> None:
        """Send one message, waiting while the server's window is shut. Others run in between.

        Raises:
            BadStatus, ConnectionEnded: the call is over.
        """
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        async with self._one_at_a_time:
            for start in range(0, len(framed), SENT_AT_ONCE_BYTES):
                part = framed[start : start + SENT_AT_ONCE_BYTES]
                await self._send(part, ends=last and start + len(part) == len(framed))

    async def _send(self, data: bytes, *, ends: bool) -> None:
        async def send() -> None:
            with self._alarm:
                await self._stream._stream.send_data(data, end_stream=ends)

        await self._translated(send)

    async def wait_answered(self) -> None:
        """Wait for the response headers. istiod sends them together with its first message.

        Raises:
            BadStatus: refused before anything else was said.
            ConnectionEnded: as it says.
        """
        if self._stream.initial_metadata is None:
            await self._translated(self._stream.recv_initial_metadata, hears=True)

    async def begin_message(self) -> int | None:
        """Wait for the next message and return its size, or None when the server has ended with status OK.

        The whole message must then be read by `piece`.

        Raises:
            BadStatus, ConnectionEnded: the call is over.
            BadMessage: larger than the limit, or compressed, which we never agreed to.
        """
        if self._remaining:
            raise WeBrokeProtocol("a message was begun before the last one was read")
        await self.wait_answered()
        prefix = await self._read(_PREFIX_BYTES, _PREFIX_BYTES)
        if not prefix:
            with self._in_our_words():
                self._finish()
            return None
        if len(prefix) < _PREFIX_BYTES:
            raise BadMessage("message cut short")
        if prefix[0]:
            raise BadMessage("compressed message without agreed compression", GrpcCode.UNIMPLEMENTED)
        size = int.from_bytes(prefix[1:], "big")
        if size > self._message_limit_bytes:
            raise BadMessage(
                f"message length too large: found {size} bytes, "
                f"the limit is: {self._message_limit_bytes} bytes",
                GrpcCode.OUT_OF_RANGE,
            )
        self._remaining = size
        return size

    async def piece(self, most: int = WINDOW_BYTES) -> bytes:
        """The next bytes of the message begun; empty when it is complete.

        From now on the server may send at most so many ahead.
        """
        if not self._remaining:
            return b""
        data = await self._read(1, min(self._remaining, most), under_way=most)
        if not data:
            raise BadMessage("message cut short")
        self._remaining -= len(data)
        return data

    async def receive(self) -> bytes | None:
        """A whole message, for those that are small, or None at the end."""
        size = await self.begin_message()
        if size is None:
            return None
        pieces: list[bytes] = []
        while data := await self.piece():
            pieces.append(data)
        return b"".join(pieces)

    def close(self) -> None:
        """Leave the call while its channel lives on: RST_STREAM unless it is over. Twice does no harm."""
        if self._is_closed or not self._stream._send_request_done:
            return
        self._is_closed = True
        if self._stream._stream.closable:
            self._stream._stream.reset_nowait(ErrorCodes.CANCEL)
        self._stream._release_stream()

    async def _read(self, least: int, most: int, under_way: int = WINDOW_BYTES) -> bytes:
        with self._in_our_words():
            return await self._inbox.take(least, most, under_way)

    def _finish(self) -> None:
        """Turn the end of the server's side into its status."""
        if self._stream._trailers_only:
            return
        trailers = self._stream._stream.trailers
        if trailers is None:  # END_STREAM on DATA: no status will come
            raise GRPCError(grpclib.const.Status.UNKNOWN, "stream ended without trailers")
        self._stream._raise_for_grpc_status(*self._stream._process_grpc_status(dict(trailers)))

    async def _translated(self, step: Callable[[], Awaitable[T]], *, hears: bool = False) -> T:
        """Run one asyncio step of this call, with its errors in our words.

        A step that `hears` is tried again after a reset that followed the server's regular end: grpclib
        interrupts everybody, but what the server said before is still there to be heard.
        """
        with self._in_our_words():
            try:
                return await from_asyncio(step)
            except StreamTerminatedError:
                if not (hears and self._inbox.has_ended):
                    raise
                self._stream._wrapper = Alarm()
                return await from_asyncio(step)

    @contextmanager
    def _in_our_words(self) -> Generator[None, None, None]:
        try:
            yield
        except GRPCError as error:
            raise self._bad_status(error) from error
        except StreamTerminatedError as error:
            try:
                if self._stream._send_request_done:
                    self._stream._maybe_raise()  # a reset that follows trailers: the trailers count
            except GRPCError as status:
                raise self._bad_status(status) from error
            raise ConnectionEnded(str(error), answered=self.answered) from error
        except H2Error as error:
            raise ConnectionEnded(f"{type(error).__name__}: {error}", answered=self.answered) from error
        except OSError as error:
            raise ConnectionEnded(failure_text(error), answered=self.answered) from error

    def _bad_status(self, error: GRPCError) -> BadStatus:
        headers = dict(self._stream._stream.headers or ()) if self._stream._send_request_done else {}
        if "grpc-status" in headers and error.status is grpclib.const.Status.UNKNOWN:
            # a refusal without content-type: its status says more than grpclib's complaint
            status, message, _ = self._stream._process_grpc_status(headers)
            return BadStatus(GrpcCode(status.value), message or "", answered=False)
        return BadStatus(GrpcCode(error.status.value), error.message or "", answered=self.answered)
