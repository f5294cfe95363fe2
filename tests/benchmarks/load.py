"""The load generator of the data path's benchmark: a plain process without dependencies, so that many fit.

    python load.py serve PORT
    python load.py bulk ADDRESS PORT up|down STREAMS SECONDS
    python load.py round-trips ADDRESS PORT CONNECTIONS SECONDS BYTES
    python load.py connections ADDRESS PORT AT-ONCE SECONDS
    python load.py idle ADDRESS PORT COUNT

A client prints one JSON object of figures; `idle` prints it once all connections stand and holds them until
its input ends. The first byte of a connection says what it is for: (e)cho, (s)ink, (p)our.
"""

import errno
import json
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

CHUNK: Final = 1 << 20
BACKLOG: Final = 4096
Figures = dict[str, float]
Address = tuple[str, int]

buffer: Final = memoryview(bytearray(CHUNK))


def say(figures: Figures) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def percentile(sorted_values: list[float], part: float) -> float:
    return (
        sorted_values[min(int(len(sorted_values) * part), len(sorted_values) - 1)] if sorted_values else 0.0
    )


def non_blocking(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def dial(address: Address, purpose: bytes) -> socket.socket:
    sock = socket.create_connection(address, timeout=30)
    sock.sendall(purpose)
    return non_blocking(sock)


# -- the destination


class Server:
    """All connections of the destination in one loop."""

    def __init__(self, port: int) -> None:
        self.poll = select.epoll()
        self.listener = socket.create_server(("", port), backlog=BACKLOG)
        self.listener.setblocking(False)
        self.poll.register(self.listener, select.EPOLLIN)
        self.connections: dict[int, tuple[socket.socket, list[bytes]]] = {}

    def run(self) -> None:
        while True:
            for fd, flags in self.poll.poll():
                if fd == self.listener.fileno():
                    self.accept()
                    continue
                sock, purpose = self.connections[fd]
                try:
                    is_open = self.serve(sock, purpose, flags)
                except BlockingIOError:
                    continue
                except OSError:
                    is_open = False
                if not is_open:
                    del self.connections[fd]
                    sock.close()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                sock = non_blocking(self.listener.accept()[0])
                self.connections[sock.fileno()] = sock, []
                self.poll.register(sock, select.EPOLLIN)

    def serve(self, sock: socket.socket, purpose: list[bytes], flags: int) -> bool:
        """Do what the connection is for; whether it stays open."""
        if purpose == [b"p"]:
            if flags & (select.EPOLLHUP | select.EPOLLERR):
                return False
            sock.send(buffer)
            return True
        if not purpose:
            purpose.append(sock.recv(1))
            if purpose == [b"p"]:
                self.poll.modify(sock, select.EPOLLOUT)
            return purpose != [b""]
        count = sock.recv_into(buffer)
        if purpose == [b"e"] and count:
            sock.send(buffer[:count])  # small: it fits
        return count > 0


# -- the clients


def bulk(address: Address, direction: str, streams: int, seconds: float) -> Figures:
    poll = select.epoll()
    purpose, wanted = (b"s", select.EPOLLOUT) if direction == "up" else (b"p", select.EPOLLIN)
    socks = {sock.fileno(): sock for sock in (dial(address, purpose) for _ in range(streams))}
    for fd in socks:
        poll.register(fd, wanted)
    total = 0
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        for fd, _ in poll.poll(seconds):
            with suppress(BlockingIOError):
                total += socks[fd].send(buffer) if direction == "up" else socks[fd].recv_into(buffer)
    return {"n": total / 1e9, "gb_per_second": total / 1e9 / (now - began)}


def round_trips(address: Address, connections: int, seconds: float, size: int) -> Figures:
    poll = select.epoll()
    message, took = bytes(size), []
    socks: dict[int, socket.socket] = {}
    sent: dict[int, float] = {}
    left: dict[int, int] = {}
    for _ in range(connections):
        sock = dial(address, b"e")
        socks[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    began = time.perf_counter()
    for fd, sock in socks.items():
        sent[fd], left[fd] = time.perf_counter(), size
        sock.send(message)
    until = began + seconds
    while (now := time.perf_counter()) < until:
        for fd, _ in poll.poll(seconds):
            sock = socks[fd]
            left[fd] -= sock.recv_into(buffer)
            if left[fd] <= 0:
                now = time.perf_counter()
                took.append(now - sent[fd])
                sent[fd], left[fd] = now, size
                sock.send(message)
    return timed(took, now - began, 0)


def connections(address: Address, at_once: int, seconds: float) -> Figures:
    """Dial, echo one byte, close, again."""
    poll = select.epoll()
    under_way: dict[int, tuple[socket.socket, float]] = {}
    took: list[float] = []
    failed = 0

    def begin() -> None:
        sock = non_blocking(socket.socket())
        under_way[sock.fileno()] = sock, time.perf_counter()
        error = sock.connect_ex(address)
        if error not in (0, errno.EINPROGRESS):
            raise OSError(error, "connect")
        poll.register(sock, select.EPOLLOUT)

    began = time.perf_counter()
    for _ in range(at_once):
        begin()
    while (now := time.perf_counter()) < began + seconds:
        for fd, flags in poll.poll(seconds):
            sock, dialled = under_way[fd]
            try:
                if flags & select.EPOLLOUT:
                    sock.send(b"ex")
                    poll.modify(fd, select.EPOLLIN)
                    continue
                failed += sock.recv(1) != b"x"
            except OSError:
                failed += 1
            took.append(time.perf_counter() - dialled)
            del under_way[fd]
            sock.close()
            begin()
    return timed(took, now - began, failed)


def timed(took: list[float], seconds: float, failed: int) -> Figures:
    took.sort()
    return {
        "n": len(took),
        "per_second": len(took) / seconds,
        "p50_us": percentile(took, 0.50) * 1e6,
        "p99_us": percentile(took, 0.99) * 1e6,
        "failed": failed,
    }


def idle(address: Address, count: int) -> None:
    socks = []
    for _ in range(count):
        sock = dial(address, b"ex")
        sock.setblocking(True)
        sock.recv(1)
        socks.append(sock)
    say({"n": len(socks)})
    sys.stdin.read()


def main(arguments: list[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    what, *rest = arguments
    if what == "serve":
        Server(int(rest[0])).run()
        return
    address, rest = (rest[0], int(rest[1])), rest[2:]
    clients: dict[str, Callable[[], Figures]] = {
        "bulk": lambda: bulk(address, rest[0], int(rest[1]), float(rest[2])),
        "round-trips": lambda: round_trips(address, int(rest[0]), float(rest[1]), int(rest[2])),
        "connections": lambda: connections(address, int(rest[0]), float(rest[1])),
    }
    if what == "idle":
        idle(address, int(rest[0]))
    else:
        say(clients[what]())


if __name__ == "__main__":
    main(sys.argv[1:])
