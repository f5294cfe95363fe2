"""Accepting without what `socket.accept` does besides.

*Saves* 7 of 21 µs a connection, most of them looking up names for the three numbers that make a socket, and
what the default timeout is (`python -m tests.benchmarks.shortcuts`).

*Rests on* `socket.socket._accept`, the method of the C type below it: (descriptor, address), close-on-exec.
Not documented; in CPython since 3.0.
"""

import socket
from collections.abc import Callable
from functools import cache

Sockaddr = tuple[str, int] | tuple[str, int, int, int]
Accept = Callable[[], tuple[socket.socket, Sockaddr]]
"""Take the next connection as a non-blocking socket. Raises as accept(2); BlockingIOError: there is none."""


def acceptor(listening: socket.socket) -> Accept:
    """How connections of a listening socket are taken."""
    return short(listening) if is_short() else plain(listening)


def plain(listening: socket.socket) -> Accept:
    """By `socket.accept`."""

    def accept() -> tuple[socket.socket, Sockaddr]:
        sock, peer = listening.accept()
        sock.setblocking(False)
        return sock, peer

    return accept


def short(listening: socket.socket) -> Accept:
    """By `socket._accept`."""
    take: Callable[[], tuple[int, Sockaddr]] = listening._accept  # type: ignore[attr-defined]
    family, kind, protocol = int(listening.family), int(listening.type), listening.proto

    def accept() -> tuple[socket.socket, Sockaddr]:
        fd, peer = take()
        sock = socket.socket(family, kind, protocol, fileno=fd)
        sock.setblocking(False)
        return sock, peer

    return accept


@cache
def is_short() -> bool:
    """Whether the short way is taken, asked once."""
    return works()


def works() -> bool:
    """Whether the short way is seen to work: a connection of ours, taken and known by its descriptor."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as calling:
        try:
            listening.bind("")  # Linux chooses an abstract name: unix(7), autobind
            listening.listen()
            calling.connect(listening.getsockname())
            sock, _ = short(listening)()
        except (AttributeError, TypeError, ValueError, OSError):
            return False
        with sock:
            return sock.getpeername() == calling.getsockname() and not sock.get_inheritable()
