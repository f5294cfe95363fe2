"""SOCK_SEQPACKET over a Unix path, with descriptor passing: one message a datagram, in order.

What the kernel hands over is owned at once: waiting and receiving are separate, receiving is synchronous,
and every descriptor of a datagram is in an owner before anything else looks at it. So a cancelled wait
loses nothing, and a caller that closes its `Datagram` leaks nothing.
"""

import array
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import trio

log = logging.getLogger("ztunnel::inpod::protocol")

MESSAGE_BYTES: Final = 1024  # both sides' read buffer (ztunnel src/inpod/packet.rs, istio ztunnelserver.go)
MOST_DESCRIPTORS: Final = 16  # taken from one datagram, so that a surplus is closed here, not lost track of


class Descriptor:
    """Owns one file descriptor until it is closed or released."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __repr__(self) -> str:
        return f"Descriptor({self._fd})"

    def release(self) -> int:
        """Give the number away; the receiver closes it."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        """Close it unless it is closed or given away already."""
        fd = self.release()
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One message. `data` empty: the peer has closed. `truncated`: the data did not fit.

    `descriptors_lost`: more were sent than fit, or than this process may have open.
    """

    data: bytes
    descriptors: tuple[Descriptor, ...] = field(default=())
    truncated: bool = False
    descriptors_lost: bool = False

    def close(self) -> None:
        """Close the descriptors nobody has taken."""
        for descriptor in self.descriptors:
            descriptor.close()


class SeqPacket:
    """One end of a connection; owns its socket."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    @classmethod
    async def connect(cls, path: str | Path) -> Self:
        """Dial a listening path.

        Raises:
            OSError: nobody listens; `BlockingIOError`: the listen queue is full, and the socket, though it
                polls writable, is not connected.
        """
        await trio.lowlevel.checkpoint()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._sock.close()

    async def wait_readable(self) -> None:
        """Wait for a datagram or the end; takes nothing, so cancelling loses nothing."""
        await trio.lowlevel.wait_readable(self._sock)

    def receive_nowait(self) -> Datagram:
        """Take one datagram; empty data is the end. Who gets it owns its descriptors.

        Raises:
            BlockingIOError: there is none.
            OSError: the connection broke.
        """
        room = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        data, control, flags, _ = self._sock.recvmsg(MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        descriptors = tuple(
            Descriptor(fd) for level, kind, raw in control for fd in _rights(level, kind, raw)
        )
        return Datagram(
            data,
            descriptors,
            truncated=flags & socket.MSG_TRUNC != 0,
            descriptors_lost=flags & socket.MSG_CTRUNC != 0,
        )

    async def receive(self) -> Datagram:
        """Wait for the next datagram; nothing is taken if the wait is cancelled.

        Raises:
            OSError: the connection broke.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.receive_nowait()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send one datagram, with copies of these descriptors.

        Raises:
            OSError: the peer is gone.
        """
        control = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                self._sock.sendmsg([data], control, socket.MSG_NOSIGNAL)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
        await trio.lowlevel.cancel_shielded_checkpoint()


def _rights(level: int, kind: int, raw: bytes) -> list[int]:
    """The descriptors of one control message; a kernel that cut it short cut whole numbers."""
    found = array.array("i")
    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
        found.frombytes(raw[: len(raw) - len(raw) % found.itemsize])
    else:
        log.warning("ignoring unexpected control message: level %s, type %s", level, kind)
    return found.tolist()
