"""What each way past a public interface saves: `python -m tests.benchmarks.shortcuts`.

Processor time of this thread a call, in µs, short and plain by turns, the best of some rounds. The place in
front of Trio's wait is a round trip through the engine, a task and back; `collector` is judged by
`datapath`.
"""

import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable

import trio

from tests.fakes.tunnels import tls_pair
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.shortcuts import accepting, queued, tls

ROUNDS = 5
CALLS = 2_000


def accept(way: Callable[[socket.socket], accepting.Accept]) -> float:
    """Accept a connection."""
    spent = 0
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        take = way(listening)
        for _ in range(CALLS):
            with socket.create_connection(listening.getsockname()):
                began = time.thread_time_ns()
                sock, _ = take()
                spent += time.thread_time_ns() - began
                sock.close()
    return spent / CALLS / 1000


async def exchange(way: Callable[[ssl.SSLSocket], tls.Reading]) -> float:
    """Write and read 100 bytes."""
    near, far = await tls_pair()
    with near, far:
        data, buffer = b"x" * 100, memoryview(bytearray(1000))
        write, read = way(near).write, way(far).read
        began = time.thread_time_ns()
        for _ in range(CALLS):
            write(data)
            read(1000, buffer)
        return (time.thread_time_ns() - began) / CALLS / 1000


async def end_of_data(is_known: Callable[[int], bool]) -> float:
    """See that nothing more is there, after a read."""
    near, far = await tls_pair()
    with near, far:
        read, buffer = tls.bytes_of(far).read, memoryview(bytearray(1000))
        began = time.thread_time_ns()
        for _ in range(CALLS):
            if not is_known(far.fileno()):
                try:  # noqa: SIM105  as the proxy does
                    read(1000, buffer)
                except ssl.SSLWantReadError:
                    pass
        return (time.thread_time_ns() - began) / CALLS / 1000


class Ringing:
    """Sets what a task waits for, when its descriptor can be read."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.rung = Once(engine)
        engine.register(self.near.fileno(), self)

    def ready(self, _flags: int) -> None:
        try:
            self.near.recv(1)
        except BlockingIOError:
            return
        self.rung.set()

    def go_on(self) -> None:
        raise AssertionError

    def broke(self, error: Exception) -> None:
        raise AssertionError from error


async def wake(is_in_front: bool) -> float:
    """Have an event wake a task."""
    engine = Engine(in_front=is_in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        bell = Ringing(engine)
        began = time.thread_time_ns()
        for _ in range(CALLS):
            bell.rung = Once(engine)
            bell.far.send(b"x")
            await bell.rung.wait()
        spent = time.thread_time_ns() - began
        nursery.cancel_scope.cancel()
    return spent / CALLS / 1000


async def main() -> None:
    """Print the table."""

    async def done(figure: float) -> float:
        await trio.lowlevel.checkpoint()
        return figure

    steps: list[tuple[str, Callable[[], Awaitable[float]], Callable[[], Awaitable[float]]]] = [
        ("accept", lambda: done(accept(accepting.short)), lambda: done(accept(accepting.plain))),
        ("tls: write and read", lambda: exchange(tls.short), lambda: exchange(tls.plain)),
        ("queued: nothing more", lambda: end_of_data(queued.short), lambda: end_of_data(queued.plain)),
        ("wait: wake a task", lambda: wake(True), lambda: wake(False)),
    ]
    sys.stdout.write(f"{'':24}{'short':>8}{'plain':>8}  µs\n")
    for name, short, plain in steps:
        figures = [(await short(), await plain()) for _ in range(ROUNDS)]
        best = [min(each) for each in zip(*figures, strict=True)]
        sys.stdout.write(f"{name:24}{best[0]:8.2f}{best[1]:8.2f}\n")


if __name__ == "__main__":
    trio.run(main)
