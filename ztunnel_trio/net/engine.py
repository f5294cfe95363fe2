"""The engine: one edge-triggered epoll that moves the bytes of every relayed connection.

Trio owns lifetimes, the engine moves bytes. A descriptor is registered once for its whole life. An event
sets the facts
*may be readable* and *may be writable* of its end and runs the end's plain, synchronous pumps until the
source has nothing, the sink takes nothing, or a window is used up. Nothing here awaits, locks, or belongs
to one connection except the end itself; the read buffers are shared by all.

*Fairness.* A pump that has moved its share asks for `again` and is run on a later round, behind the others.

*Failure.* What a pump raises ends its own connection (`End.broke`) and nothing else: Trio takes an
instrument that raises out of service for good, and the next connection is not to blame.

*Two drivers.* Either a task waits for the epoll descriptor as for any other (public interface, always
right), or an instrument waits in our epoll in Trio's place, with Trio's own epoll as one member; then bytes
cost no task switch. The second needs a private attribute of Trio and is used only where it is found.
Callbacks make tasks runnable while Trio has already decided how long to sleep, so whoever does that calls
`wake`.
"""

import fcntl
import logging
import os
import select
import termios
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import trio

log = logging.getLogger("ztunnel::engine")

HEADER_ROOM: Final = 9  # for what a tunnel writes before a payload
# With its header a chunk fills sixteen TLS records of 16 KiB exactly (RFC 8446 5.1).
CHUNK_BYTES: Final = 16 * 16_384 - HEADER_ROOM
READ_BYTES: Final = 262_144
CHUNKS_A_TURN: Final = 2  # what one pump moves before the others get their turn
_EVENTS_A_POLL: Final = 256
_LONGEST_STAY: Final = 0.05  # seconds the instrument keeps Trio waiting under endless traffic

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITABLE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
HANGING_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_INTEREST: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class End(Protocol):
    """What the engine calls: an open descriptor's owner, or anything that wants another round."""

    def ready(self, flags: int) -> None:
        """The descriptor's state changed; `flags` are those of epoll."""

    def go_on(self) -> None:
        """The round that was asked for with `again`."""

    def broke(self, error: Exception) -> None:
        """A pump of this end raised: end the connection. Must not raise."""


class Once:
    """One thing that happens once, for one waiting task; a fraction of a `trio.Event` in size.

    `set` may be called from pumps.
    """

    __slots__ = ("_engine", "_task", "is_set")

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._task: trio.lowlevel.Task | None = None
        self.is_set = False

    def set(self) -> None:
        """Wake the waiting task."""
        self.is_set = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)
            self._engine.wake()

    async def wait(self) -> None:
        """Return when it has happened; one task only. A checkpoint in any case."""
        if self.is_set:
            await trio.lowlevel.checkpoint()
            return
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Engine:
    """The process's one engine; `run` is its owner's task. See the module's text."""

    def __init__(self, *, use_instrument: bool = True) -> None:
        self._use_instrument = use_instrument
        self._epoll = select.epoll()
        self._ends: dict[int, End] = {}
        self._later: deque[End] = deque()
        self._in_turn = False
        self._woken = False
        self._kick_fd = -1
        self._trios_epoll = -1
        # Two buffers: a tunnel's read pump walks the first while what it finds makes other pumps fill the
        # second.
        self.incoming = memoryview(bytearray(READ_BYTES))
        self.outgoing = memoryview(bytearray(HEADER_ROOM + CHUNK_BYTES))
        self.payload = self.outgoing[HEADER_ROOM:]
        self._queue_length = bytearray(4)

    # -- for ends

    def register(self, fd: int, end: End) -> None:
        """Watch a descriptor for its whole life; its state now comes as the first event.

        Once `run` has ended nothing moves any more: whoever registers then is being cancelled as well.
        """
        if not self._epoll.closed:
            self._epoll.register(fd, _INTEREST)
        self._ends[fd] = end

    def unregister(self, fd: int) -> None:
        """Forget a descriptor; must come before it is closed. Harmless when it is not registered."""
        if self._ends.pop(fd, None) is not None and not self._epoll.closed:
            self._epoll.unregister(fd)

    def again(self, end: End) -> None:
        """Run `end.go_on` on a later round."""
        self._later.append(end)
        if not self._in_turn and self._kick_fd >= 0:
            os.eventfd_write(self._kick_fd, 1)

    def wake(self) -> None:
        """A task was made runnable: Trio must not go to sleep now."""
        self._woken = True

    def is_drained(self, fd: int) -> bool:
        """Whether a socket's receive queue is empty: a sixth of the price of a read that would block."""
        fcntl.ioctl(fd, termios.FIONREAD, self._queue_length)
        return not any(self._queue_length)

    @property
    def registered(self) -> int:
        """How many descriptors are watched."""
        return len(self._ends)

    # -- the drivers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move bytes until cancelled."""
        instrument = self._make_instrument() if self._use_instrument else None
        try:
            if instrument is None:
                await self._run_as_task(task_status)
                return
            trio.lowlevel.add_instrument(instrument)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        finally:
            self._epoll.close()

    async def _run_as_task(self, task_status: trio.TaskStatus[None]) -> None:
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._epoll.register(self._kick_fd, select.EPOLLIN | select.EPOLLET)
            task_status.started()
            while True:
                if self._later:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self.turn(0)
        finally:
            os.close(self._kick_fd)
            self._kick_fd = -1

    def _make_instrument(self) -> "_InIdleWait | None":
        waits = _find_trios_waits()
        if waits is None:
            log.info("no way into the idle wait of this trio: the engine runs as a task")
            return None
        self._trios_epoll, wake_trio = waits
        self._epoll.register(self._trios_epoll, select.EPOLLIN)
        return _InIdleWait(self, wake_trio)

    def turn(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for events and run their pumps, and those waiting for another round.

        Returns whether Trio's own epoll has something for Trio.
        """
        events = self._epoll.poll(0 if self._later else timeout, _EVENTS_A_POLL)
        trio_is_ready = False
        ends = self._ends
        self._in_turn = True
        for fd, flags in events:
            end = ends.get(fd)
            if end is None:
                trio_is_ready |= fd == self._trios_epoll  # else an end unregistered a moment ago
                continue
            try:
                end.ready(flags)
            except Exception as error:  # noqa: BLE001  # a pump's failure is its own connection's
                _break(end, error)
        for _ in range(len(self._later)):
            end = self._later.popleft()
            try:
                end.go_on()
            except Exception as error:  # noqa: BLE001
                _break(end, error)
        self._in_turn = False
        return trio_is_ready

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for another round."""
        return bool(self._later)


def _break(end: End, error: Exception) -> None:
    """End the connection whose pump raised; whatever that raises in turn must not reach Trio."""
    try:
        end.broke(error)
    except Exception:
        log.exception("a connection could not be ended after %r", error)


class _InIdleWait(trio.abc.Instrument):
    """The engine in the place of Trio's idle wait."""

    def __init__(self, engine: Engine, wake_trio: Callable[[], object]) -> None:
        self._engine = engine
        self._wake_trio = wake_trio

    def before_io_wait(self, timeout: float) -> None:
        """Move bytes until Trio has something to do.

        Never raises; returns within a bounded time under any traffic.
        """
        engine = self._engine
        engine._woken = False
        if timeout <= 0:
            engine.turn(0)  # Trio is about to look for itself
            return
        now = time.monotonic()
        until = now + timeout
        busy_since = now
        while True:
            before = now
            trio_is_ready = engine.turn(until - now)
            if trio_is_ready:
                return  # Trio's own wait returns at once
            if engine._woken:
                break
            now = time.monotonic()
            if now >= until:
                if trio.lowlevel.current_statistics().seconds_to_next_deadline > 0:
                    return  # Trio waits for idleness, not for a deadline: let it see that
                break
            if now - before > 0.001:  # we slept: nobody has been kept waiting
                busy_since = now
            elif now - busy_since > _LONGEST_STAY:
                break
        self._wake_trio()


def _find_trios_waits() -> tuple[int, Callable[[], object]] | None:
    """The descriptor of the running Trio's epoll and what makes its next wait return at once.

    None where Trio's insides are not as we know them. What wakes is `force_wakeup`, two system calls; the
    public `run_sync_soon` of a function that does nothing costs a task's step as well.
    """
    from trio._core import _run

    runner = getattr(_run.GLOBAL_RUN_CONTEXT, "runner", None)
    manager = getattr(runner, "io_manager", None)
    epoll = getattr(manager, "_epoll", None)
    if not isinstance(epoll, select.epoll) or epoll.closed:
        return None
    wake: Callable[[], object] | None = getattr(manager, "force_wakeup", None)
    if wake is None:
        token = trio.lowlevel.current_trio_token()
        wake = partial(token.run_sync_soon, _nothing, idempotent=True)
    return epoll.fileno(), wake


def _nothing() -> None:
    """What Trio is woken with."""
