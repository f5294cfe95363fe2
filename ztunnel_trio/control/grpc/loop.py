"""The asyncio loop inside Trio: its life, and the way across.

asyncio finds the current task by the thread's running loop, which an implementation of loops has to name.
trio-asyncio does not: it replaces asyncio's functions instead, which leaves out who took one before, as
grpclib may have, and since CPython 3.12 asyncio's own parts in C. `open_control_loop` names it; a thread has
one.
"""

import asyncio  # noqa: TID251  this room is the fence
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import trio
from grpclib.utils import Wrapper

from ztunnel_trio.control.grpc.bridge import trio_asyncio, versions
from ztunnel_trio.errors import Unusable

T = TypeVar("T")
log = logging.getLogger("ztunnel::control::grpc")

CLOSE_SECONDS: Final = 1.0
_TURNS_TO_CLOSE: Final = 10  # of the loop: TLS aborts TCP, which calls its protocol, which closes the socket


@asynccontextmanager
async def open_control_loop() -> AsyncGenerator[None, None]:
    """Run the body, and every task started below it, where channels and servers can be opened.

    Raises:
        Unusable: this trio-asyncio, grpclib and CPython do not work together.
    """
    with _running_loop() as tell:
        async with trio_asyncio.open_loop() as loop:
            tell(loop)
            loop.set_exception_handler(_note_loop_error)
            await _prove()
            try:
                yield
            finally:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await from_asyncio(_wind_up)


@contextmanager
def _running_loop() -> Generator[Callable[[asyncio.AbstractEventLoop], None], None, None]:
    """Give the body the function that names this thread's running loop; afterwards it has none."""
    try:
        yield asyncio._set_running_loop
    finally:
        asyncio._set_running_loop(None)


async def _prove() -> None:
    """See that a step is a task to asyncio and to grpclib, before anything depends on it."""

    async def step() -> None:
        with Wrapper():
            await asyncio.sleep(0)

    try:
        await from_asyncio(step)
    except (RuntimeError, AssertionError) as error:
        raise Unusable(f"{versions()}: a call of grpclib's is no task of the event loop: {error}") from error


async def from_asyncio(step: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function of the asyncio side and return its result on the Trio side."""
    result: T = await trio_asyncio.aio_as_trio(step)()
    return result


async def abandon(sock: socket.socket) -> None:
    """Let a transport that never came about close its socket: it reads an end of file.

    Closing the socket under it would leave the loop watching a descriptor that is somebody else's soon.
    """
    with contextlib.suppress(OSError):  # not connected any more, or closed already
        sock.shutdown(socket.SHUT_RDWR)
    await _turns()


def _note_loop_error(_loop: asyncio.AbstractEventLoop, context: "dict[str, object]") -> None:
    """Keep a connection's error from ending the loop: its transport is closed already when this is called."""
    error = context.get("exception")
    text = str(context.get("message"))
    if isinstance(error, Exception):
        log.debug("%s: %r", text, error)
    else:
        log.debug("%s", text)


async def _wind_up() -> None:
    """End what the loop still runs (handshakes nobody waits for) and let transports close their sockets."""
    await _turns()  # a TLS transport that was only just made ignores its close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
    await _turns()


async def _turns() -> None:
    for _ in range(_TURNS_TO_CLOSE):
        await asyncio.sleep(0)
