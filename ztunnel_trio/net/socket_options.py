"""How sockets are made: the settings, and what becomes of them as options.

What a socket needs before its first packet (the mark) must be permitted; probing idle peers is a courtesy.
"""

import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ztunnel_trio.facts import defaults
from ztunnel_trio.facts.linux import SO_MARK

log = logging.getLogger("ztunnel::socket")

Option = tuple[int, int, int | bytes]  # level, name, value

_TCP: Final = int(socket.IPPROTO_TCP)
NO_DELAY: Final[Option] = (_TCP, socket.TCP_NODELAY, 1)  # small writes leave at once
_LARGEST_INT: Final = 2**31 - 1  # what setsockopt(2) takes


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSettings:
    """How sockets are made. `mark` is `PACKET_MARK`; None leaves them unmarked."""

    mark: int | None = None
    keepalive: bool = True  # KEEPALIVE_ENABLED
    keepalive_idle_seconds: int = defaults.KEEPALIVE_SECONDS  # KEEPALIVE_TIME
    keepalive_interval_seconds: int = defaults.KEEPALIVE_SECONDS  # KEEPALIVE_INTERVAL
    keepalive_probes: int = defaults.KEEPALIVE_PROBES  # KEEPALIVE_RETRIES
    user_timeout: bool = False  # USER_TIMEOUT_ENABLED
    reuse_port: bool = True  # INPOD_PORT_REUSE
    ipv6: bool = True  # IPV6_ENABLED
    backlog: int = 128  # ztunnel src/inpod/config.rs

    @property
    def user_timeout_seconds(self) -> int:
        """How long unacknowledged data may wait: as long as an idle connection's probes would."""
        return self.keepalive_idle_seconds + self.keepalive_probes * self.keepalive_interval_seconds


class SocketOptions:
    """The options of one workload's sockets, worked out once."""

    __slots__ = ("_keepalive", "_mark", "_user_timeout")

    def __init__(self, settings: SocketSettings) -> None:
        # As bytes: an int above 2^31 does not pass.
        mark = settings.mark
        self._mark: tuple[Option, ...] = (
            () if mark is None else ((socket.SOL_SOCKET, SO_MARK, mark.to_bytes(4, sys.byteorder)),)
        )
        probes = (
            (socket.TCP_KEEPIDLE, settings.keepalive_idle_seconds),
            (socket.TCP_KEEPINTVL, settings.keepalive_interval_seconds),
            (socket.TCP_KEEPCNT, settings.keepalive_probes),
        )
        self._keepalive: tuple[Option, ...] = ()
        if settings.keepalive:
            self._keepalive = (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                *((_TCP, name, min(value, _LARGEST_INT)) for name, value in probes),
            )
        self._user_timeout: tuple[Option, ...] = ()
        if settings.user_timeout:
            milliseconds = min(settings.user_timeout_seconds * 1000, _LARGEST_INT)
            self._user_timeout = ((_TCP, socket.TCP_USER_TIMEOUT, milliseconds),)

    def set_mark(self, sock: socket.socket) -> None:
        """Have the pod's redirection leave its packets alone.

        Raises:
            OSError: that is not permitted.
        """
        for option in self._mark:
            sock.setsockopt(*option)

    def keep_alive(self, sock: socket.socket) -> None:
        """Keepalive and user timeout; a kernel that refuses one costs us only that."""
        for options, what in ((self._keepalive, "keepalive"), (self._user_timeout, "user timeout")):
            try:
                for option in options:
                    sock.setsockopt(*option)
            except OSError as error:
                log.debug("failed to set %s: %s", what, error)

    def of_dialling(self, more: tuple[Option, ...] = ()) -> Callable[[socket.socket], None]:
        """What sets all that a stream socket needs before it dials, and `more` where that is permitted.

        It raises OSError where the mark is not permitted.
        """
        every = (NO_DELAY, *self._mark, *self._keepalive, *self._user_timeout, *more)

        def prepare(sock: socket.socket) -> None:
            set_option = sock.setsockopt
            try:
                for option in every:
                    set_option(*option)
            except OSError:
                self._prepare_one_by_one(sock, more)

        return prepare

    def _prepare_one_by_one(self, sock: socket.socket, more: tuple[Option, ...]) -> None:
        """Something was refused: see what, and whether it matters."""
        sock.setsockopt(*NO_DELAY)
        self.set_mark(sock)
        self.keep_alive(sock)
        try:
            for option in more:
                sock.setsockopt(*option)
        except OSError as error:
            log.warning("failed to set freebind: %s", error)
