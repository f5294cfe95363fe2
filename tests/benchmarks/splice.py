"""Plain relay by copy and by `os.splice`: throughput and CPU of the process between two TCP connections.

python -m tests.benchmarks.splice [--seconds 2]
"""

import argparse
import multiprocessing
import os
import select
import socket
import time
from collections.abc import Callable

from tests.benchmarks import yardstick
from ztunnel_trio.net.engine import CHUNK_BYTES

Move = Callable[[socket.socket, socket.socket], int]


def copier() -> Move:
    """Moves one chunk through a buffer of our own, as `net.socket_pair` does."""
    buffer = memoryview(bytearray(CHUNK_BYTES))

    def move(source: socket.socket, sink: socket.socket) -> int:
        size = source.recv_into(buffer)
        sink.sendall(buffer[:size])
        return size

    return move


def splicer() -> Move:
    """Moves one chunk through a pipe, without a copy into user space."""
    reading, writing = os.pipe()
    size = 1 << 20

    def move(source: socket.socket, sink: socket.socket) -> int:
        got = os.splice(source.fileno(), writing, size)
        left = got
        while left:
            left -= os.splice(reading, sink.fileno(), left)
        return got

    return move


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def send_for_ever(sock: socket.socket) -> None:
    data = bytes(1 << 18)
    try:
        while True:
            sock.sendall(data)
    except OSError:
        return


def receive_for_ever(sock: socket.socket) -> None:
    buffer = bytearray(1 << 18)
    while sock.recv_into(buffer):
        pass


def measure_way(name: str, make: Callable[[], Move], seconds: float) -> yardstick.Figures:
    """Gigabytes a second, and CPU seconds a gigabyte of the relaying process."""
    (feed, source), (sink, drain) = connected(), connected()
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=send_for_ever, args=(feed,), daemon=True),
        context.Process(target=receive_for_ever, args=(drain,), daemon=True),
    ]
    for worker in workers:
        worker.start()
    move, moved = make(), 0
    until = time.perf_counter() + seconds
    with yardstick.stopwatch() as took:
        while time.perf_counter() < until:
            select.select([source], [], [], 1)
            moved += move(source, sink)
    for sock in (feed, source, sink, drain):
        sock.close()
    for worker in workers:
        worker.terminate()
        worker.join()
    return {
        f"{name}: gb_per_second": moved / took.wall / 1e9,
        f"{name}: CPU s/GB": took.cpu / moved * 1e9,
    }


def measure(chosen: argparse.Namespace) -> yardstick.Figures:
    return {
        **measure_way("copy", copier, chosen.seconds),
        **measure_way("splice", splicer, chosen.seconds),
    }


if __name__ == "__main__":
    options = yardstick.options(__doc__)
    options.add_argument("--seconds", type=float, default=2.0)
    yardstick.run(options, measure)
