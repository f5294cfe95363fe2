"""Sockets made ahead, so that many share one trip into a pod's namespace.

A socket belongs for life to the namespace it was made in, and that is all the namespace is needed for:
options, binding and connecting work from outside. The trip there and back costs as much as everything else
a socket needs before it connects. So whoever dials often has several made at once: as many as the last trip
made, doubled up to `MOST`, if those were used up within `QUICK_SECONDS`; else one, and a pod that dials now
and then holds none.

What is left is closed by `close`, with the pod: a socket keeps its namespace alive. After it none is handed
out from before, and a new one cannot be made where the namespace is gone.
"""

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

MOST: Final = 8  # made by one trip; one less may wait, some 2 KiB of the kernel's each
QUICK_SECONDS: Final = 1.0
_KIND: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


class Spares:
    """The stream sockets of one family with the same options, of one pod."""

    __slots__ = ("_count", "_family", "_inside", "_made_at", "_most", "_now", "_prepare", "_ready")

    def __init__(
        self,
        family: socket.AddressFamily,
        inside: Callable[[], AbstractContextManager[None]],
        prepare: Callable[[socket.socket], None],
        now: Callable[[], float] = time.monotonic,
        *,
        most: int = MOST,
    ) -> None:
        self._family = int(family)
        self._inside = inside
        self._prepare = prepare
        self._now = now
        self._most = most
        self._ready: list[socket.socket] = []
        self._count = 0  # made by the last trip
        self._made_at = 0.0

    def take(self) -> socket.socket:
        """A socket that is prepared and was never used; the caller owns it.

        Raises:
            OSError: the namespace is gone, there is no descriptor left, or what `prepare` raised.
        """
        if not self._ready:
            self._make()
        sock = self._ready.pop()
        try:
            self._prepare(sock)
        except OSError:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        """Close what is left."""
        while self._ready:
            self._ready.pop().close()
        self._count = 0

    def _make(self) -> None:
        now = self._now()
        is_quick = now - self._made_at < QUICK_SECONDS
        wanted = min(2 * self._count, self._most) if is_quick and self._count else 1
        with self._inside():
            for _ in range(wanted):
                try:
                    self._ready.append(socket.socket(self._family, _KIND))
                except OSError:
                    if not self._ready:
                        raise
                    break  # the last descriptors are not for later
        self._count, self._made_at = len(self._ready), now
