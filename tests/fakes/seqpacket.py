"""The accepting side of SOCK_SEQPACKET, for tests that are the CNI agent themselves."""

import errno
import socket
from pathlib import Path
from typing import Self

import trio

from ztunnel_trio.net.seqpacket import SeqPacket


class SeqPacketListener:
    """Owns its socket and the path."""

    __slots__ = ("_path", "_sock")

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._sock = sock
        self._path = path

    @classmethod
    def listen(cls, path: str | Path, *, backlog: int = 16) -> Self:
        """Bind and listen; a stale file is removed first.

        Raises:
            OSError: the path cannot be bound.
        """
        path = Path(path)
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            sock.bind(str(path))
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
        return cls(sock, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and remove the path."""
        self._sock.close()
        self._path.unlink(missing_ok=True)

    async def accept(self) -> SeqPacket:
        """Wait for the next connection.

        Raises:
            OSError: as accept(2); aborted connections are skipped.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                if error.errno != errno.ECONNABORTED:
                    raise
            else:
                return SeqPacket(sock)
