"""The engine: one edge-triggered epoll that moves the bytes of every relayed connection.

Trio owns lifetimes, the engine moves bytes. A descriptor is registered once for its whole life. An event
sets the facts
*may be readable* and *may be writable* of its end and runs the end's plain, synchronous pumps until the
source has nothing, the sink takes nothing, or a window is used up. Nothing here awaits, locks, or belongs
to one connection except the end itself; the read buffers are shared by all.

*Fairness.* A pump that has moved its share asks for `again` and is run on a later round, behind the others.

*Writing.* What a tunnel has to say in one turn is written once, at its end (`write_later`): frames of many
streams share a TLS record, a system call, and a record at the reader.

*Failure.* What a pump raises ends its own connection (`End.broke`) and nothing else: the driver is Trio's
own loop, and the next connection is not to blame.

*Two drivers.* Either a task waits for the epoll descriptor as for any other (public interface, always
right), or we stand in front of Trio's own wait for I/O, with Trio's epoll as one member of ours; then bytes
cost no task switch and waking a task costs no system call. The second needs private attributes of Trio and
is used only where they are found. Callbacks make tasks runnable while Trio has already decided how long to
sleep, so whoever does that calls `wake`.
"""

import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

log = logging.getLogger("ztunnel::engine")

HEADER_ROOM: Final = 9  # for what a tunnel writes before a payload
# With its header a chunk fills sixteen TLS records of 16 KiB exactly (RFC 8446 5.1).
CHUNK_BYTES: Final = 16 * 16_384 - HEADER_ROOM
READ_BYTES: Final = 262_144
CHUNKS_A_TURN: Final = 2  # what one pump moves before the others get their turn
_EVENTS_A_POLL: Final = 256
_LONGEST_STAY: Final = 0.05  # seconds Trio is kept waiting under endless traffic
_Events = list[tuple[int, int]]
Worked = Callable[[float, float], None]
"""Told before Trio waits: the seconds it worked since it last woke, and how long it may wait."""

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


class Writer(Protocol):
    """Somebody who has something to write at the end of the turn."""

    def write_out(self) -> None:
        """Write what was gathered; the next `write_later` is a new one."""

    def broke(self, error: Exception) -> None:
        """`write_out` raised. Must not raise."""


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

    def wait(self) -> Awaitable[object]:
        """To be awaited at once, by one task only; returns when it has happened. A checkpoint in any case.

        Trio's own coroutine, not one around it: every idle connection keeps one.
        """
        if self.is_set:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105  # the caller awaits it
        self._task = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._abort)  # noqa: ASYNC105  # as above

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Engine:
    """The process's one engine; `run` is its owner's task. See the module's text."""

    def __init__(self, *, in_front: bool = True) -> None:
        self._in_front = in_front
        self._worked: Worked | None = None
        self._epoll = select.epoll()
        self._ends: dict[int, End] = {}
        self.moved = 0  # events so far, and rounds asked for: bulk work makes way while it grows
        self._later: deque[End] = deque()
        self._writers: list[Writer] = []
        self._in_turn = False
        self._woken = False
        self._kick_fd = -1
        self._trios_epoll = -1
        # Two buffers: a tunnel's read pump walks the first while what it finds makes other pumps fill the
        # second.
        self.incoming = memoryview(bytearray(READ_BYTES))
        self.outgoing = memoryview(bytearray(HEADER_ROOM + CHUNK_BYTES))
        self.payload = self.outgoing[HEADER_ROOM:]

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

    def forget(self, fd: int) -> None:
        """`unregister` for a descriptor that is closed next, which ends the watch by itself."""
        self._ends.pop(fd, None)

    def again(self, end: End) -> None:
        """Run `end.go_on` on a later round."""
        self._later.append(end)
        if not self._in_turn and self._kick_fd >= 0:
            os.eventfd_write(self._kick_fd, 1)

    def write_later(self, writer: Writer) -> None:
        """Call `writer.write_out` before the engine next waits."""
        self._writers.append(writer)
        if not self._in_turn and self._kick_fd >= 0:
            os.eventfd_write(self._kick_fd, 1)

    def wake(self) -> None:
        """A task was made runnable: Trio must not go to sleep now."""
        self._woken = True

    def tell_waits(self, worked: Worked) -> bool:
        """Call `worked` before each wait of Trio's from now on; False: we do not stand in front of it."""
        if self._trios_epoll < 0:
            return False
        self._worked = worked
        return True

    @property
    def registered(self) -> int:
        """How many descriptors are watched."""
        return len(self._ends)

    # -- the drivers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move bytes until cancelled."""
        runner = _find_runner() if self._in_front else None
        try:
            if runner is None:
                await self._run_as_task(task_status)
                return
            before = runner.io_manager
            self._trios_epoll = before._epoll.fileno()
            self._epoll.register(self._trios_epoll, select.EPOLLIN)
            runner.io_manager = _InFront(self, before)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                runner.io_manager = before
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

    def turn(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for events and run their pumps, and those waiting for another round.

        Returns whether Trio's own epoll has something for Trio.
        """
        self._in_turn = True
        if self._writers:
            self._write_out()
        events = self._epoll.poll(0 if self._later else timeout, _EVENTS_A_POLL)
        trio_is_ready = False
        ends = self._ends
        for fd, flags in events:
            end = ends.get(fd)
            if end is None:
                trio_is_ready |= fd == self._trios_epoll  # else an end unregistered a moment ago
                continue
            try:
                end.ready(flags)
            except Exception as error:  # noqa: BLE001  # a pump's failure is its own connection's
                _break(end, error)
        self.moved += len(events) - trio_is_ready
        if self._later:
            self._go_on()
        if self._writers:
            self._write_out()
        self._in_turn = False
        return trio_is_ready

    def _go_on(self) -> None:
        self.moved += len(self._later)
        for _ in range(len(self._later)):
            end = self._later.popleft()
            try:
                end.go_on()
            except Exception as error:  # noqa: BLE001  # a pump's failure is its own connection's
                _break(end, error)

    def _write_out(self) -> None:
        while self._writers:  # whose writing may make others write
            writers, self._writers = self._writers, []
            for writer in writers:
                try:
                    writer.write_out()
                except Exception as error:  # noqa: BLE001  # as above
                    _break(writer, error)


def _break(end: End | Writer, error: Exception) -> None:
    """End the connection whose pump raised; whatever that raises in turn must not reach Trio."""
    try:
        end.broke(error)
    except Exception:
        log.exception("a connection could not be ended after %r", error)


class _TriosWait(Protocol):
    """What we use of the object Trio waits for I/O with."""

    _epoll: select.epoll

    def get_events(self, timeout: float) -> _Events: ...

    def process_events(self, events: _Events) -> None: ...

    def force_wakeup(self) -> None: ...


class _Runner(Protocol):
    """What we use of the running Trio."""

    io_manager: "_TriosWait | _InFront"


class _InFront:
    """The engine in front of Trio's wait for I/O; everything else is passed on.

    Trio asks for events once a scheduler step, and takes an empty answer for a wait that was long enough.
    """

    def __init__(self, engine: Engine, trios: _TriosWait) -> None:
        self._engine = engine
        self._trios = trios
        self._epoll = trios._epoll
        self._woke = time.monotonic()
        self.process_events = trios.process_events

    def __getattr__(self, name: str) -> object:
        return getattr(self._trios, name)

    def force_wakeup(self) -> None:
        self._trios.force_wakeup()

    def get_events(self, timeout: float) -> _Events:
        """Move bytes until Trio has something to do, and answer with what that is.

        Never raises; returns within a bounded time under any traffic.
        """
        engine = self._engine
        engine._woken = False
        now = time.monotonic()
        if engine._worked is not None:
            engine._worked(now - self._woke, timeout)
        events = self._wait(now, timeout)
        self._woke = time.monotonic()
        return events

    def _wait(self, now: float, timeout: float) -> _Events:
        engine = self._engine
        if timeout <= 0:
            return self._trios.get_events(0) if engine.turn(0) else []
        until = now + timeout
        busy_since = now
        while True:
            before = now
            if engine.turn(until - now):
                return self._trios.get_events(0)
            if engine._woken:
                return []
            now = time.monotonic()
            if now >= until:
                return []
            if now - before > 0.001:  # we slept: nobody has been kept waiting
                busy_since = now
            elif now - busy_since > _LONGEST_STAY:
                self._trios.force_wakeup()  # an answer that is not empty: the wait was cut short
                return self._trios.get_events(0)


def _find_runner() -> _Runner | None:
    """The running Trio; None where its insides are not as we know them, with the reason in the log."""
    insides = sys.modules.get("trio._core._run")
    runner: _Runner | None = getattr(getattr(insides, "GLOBAL_RUN_CONTEXT", None), "runner", None)
    manager = getattr(runner, "io_manager", None)
    epoll = getattr(manager, "_epoll", None)
    is_known = (
        isinstance(epoll, select.epoll)
        and not epoll.closed
        and not getattr(runner, "is_guest", True)
        and all(callable(getattr(manager, name, None)) for name in _USED)
    )
    if not is_known:
        log.warning("no way into the wait of Trio %s: the engine runs as a task, slower", trio.__version__)
        return None
    return runner


_USED: Final = ("get_events", "process_events", "force_wakeup")
