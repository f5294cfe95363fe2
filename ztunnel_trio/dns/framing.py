"""DNS over a byte stream: each message behind its length in two bytes (RFC 1035 4.2.2, RFC 7766 8)."""

from typing import Final

import trio

from ztunnel_trio.errors import PeerBrokeProtocol

CHUNK: Final = 16384


class MessageStream:
    """Whole messages over any stream. One task receives, one sends; `aclose` closes the stream."""

    __slots__ = ("_buffer", "_stream")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def receive(self) -> bytes | None:
        """The next message, None at the end between two of them.

        Raises:
            PeerBrokeProtocol: the end came within a message.
            trio.BrokenResourceError: the connection was reset.
        """
        length = None
        while True:
            if length is None and len(self._buffer) >= 2:
                length = int.from_bytes(self._buffer[:2], "big")
            if length is not None and len(self._buffer) >= 2 + length:
                message = bytes(self._buffer[2 : 2 + length])
                del self._buffer[: 2 + length]
                await trio.lowlevel.checkpoint()
                return message
            chunk = await self._stream.receive_some(CHUNK)
            if not chunk:
                if self._buffer:
                    raise PeerBrokeProtocol("connection ended within a message")
                return None
            self._buffer += chunk

    async def send(self, message: bytes) -> None:
        """Send one message of up to 65535 bytes, in one write.

        Raises:
            trio.BrokenResourceError: the connection was reset.
        """
        await self._stream.send_all(len(message).to_bytes(2, "big") + message)

    async def aclose(self) -> None:
        await self._stream.aclose()
