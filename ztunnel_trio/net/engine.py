"""The engine: one edge-triggered epoll that moves the bytes of every relayed connection.

Trio owns lifetimes, the engine moves bytes. A connection is one Trio task that decides, dials, registers
its two ends and awaits their end; everything in between is plain, synchronous *pumps*, called from here.

Facts about epoll, edge-triggered
---------------------------------
A descriptor is registered once for its whole life, for everything (`_INTEREST`): no system call to ask
again. In return an event comes once, when something *changes*, and says nothing about how much there is. So
an end keeps two facts, *may be readable* and *may be writable*; an event sets them, and only a call that
would block clears them. A pump goes on until its source has nothing, its sink takes nothing, a window is
used up, or it has had its share; whichever of these ends it must be what makes it be called again:

- would block: the next event of that descriptor;
- a window: the frame that opens it, by whoever reads it;
- its share: `again`.

A pump that returns for any other reason stands still for ever, which no test under load shows: check each
`return` in a pump against this list.

Registering gives the present state as a first event. Closing a descriptor ends its watch, if no other
descriptor refers to the same file (epoll(7)): ours are never duplicated, so `forget` and a close are
enough. The number may be another socket's within the same turn: an event of the old one that is not handled
yet goes to the new one. That is harmless, as every event only says that something may be so – but HUP and
ERR must be believed from the socket itself (a read, SO_ERROR), not from the flags alone.

A turn
------
`turn` is all there is; both drivers call it and nothing else does:

1. *write out* what tasks have asked to have written since the last turn;
2. *poll*, without waiting if somebody asked for another round or made a task runnable;
3. *events*: each to its end's `ready`, which runs pumps;
4. *rounds*: `go_on` of the ends that asked with `again`, in the order they asked;
5. *write out* what all of these have gathered: frames of many streams share a TLS record, a system call,
   and a record at the reader.

Who may call what when
----------------------
|                        | a pump (3, 4)        | `write_out` (1, 5)   | a task          | a thread |
|------------------------|----------------------|----------------------|-----------------|----------|
| `register`             | yes                  | yes                  | yes             | no       |
| `unregister`, `forget` | yes, also of others  | yes                  | yes             | no       |
| `again`                | yes: the next round  | yes: the next turn   | yes             | no       |
| `write_later`          | yes: this turn's 5   | yes: the same step   | yes: the next 1 | no       |
| `wake`, `Once.set`     | yes                  | yes                  | yes             | no       |
| `Once.wait`, `await`   | no                   | no                   | yes             | no       |
| `incoming`, `outgoing` | until it returns     | until it returns     | no              | no       |
| `turn`                 | no                   | no                   | no              | no       |

*Re-entrancy.* A pump may call another pump directly: what a tunnel reads fills sockets, whose credit fills
the tunnel. Each guards itself, and the two buffers are apart because the one is walked while the other is
filled. A pump may end any connection, itself included: `ready` may come for an end that was told to end
earlier in the same turn, unless it is unregistered, and `go_on` for one that asked before it ended; both
must do nothing then. `again` twice by the same end means two rounds: who needs one keeps a flag.

*Fairness.* No pump moves more than its share (`CHUNKS_A_TURN`; `SHARE_SECONDS` of work for what is not
bytes) before it asks for `again`. Rounds are run in the order of asking and end after `ROUNDS_SECONDS`;
those not run keep their places. A poll takes `_EVENTS_A_POLL` events at most; the kernel hands out those
that were ready longest first. So a turn has an end under any traffic, and so has the wait of Trio's timers
and new connections: see `shortcuts.trio_wait`. Bulk work elsewhere (a large mesh being loaded) makes way
while `moved` grows.

*Waking tasks.* Reschedule, then `wake`: while the engine stands in front of Trio's wait, Trio has already
decided how long to sleep. `Once` does both. A wake-up in any step of a turn, also in 1, before the poll,
ends the wait.

*Failure.* What a pump raises ends its own connection (`broke`) and nothing else: above us is Trio's own
loop, and the next connection is not to blame. `broke` may not raise; if it does, that is logged.
BaseExceptions pass: nothing here raises one, and signals do not (`shortcuts.trio_wait`).

*The end.* `run` is cancelled when no connection is left. After it the descriptors stay registered nowhere:
an end that is still there moves no more, and may be unregistered and closed as ever.

Two drivers
-----------
Either we stand in front of Trio's wait for I/O (`shortcuts.trio_wait`), with Trio's epoll as one member of
ours; then bytes cost no task switch. Or a task waits for our epoll's descriptor as for any other: public
interface only and always right, at about twice the time a round trip takes. `run` tries the first, proves
it by an event, and takes the second with a warning where that fails; the config dump says which it is. As a
task, what is asked for outside a turn has to end the task's sleep: that is what the kick, an eventfd among
the others, is for.
"""

import logging
import os
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from ztunnel_trio.shortcuts import trio_wait

log = logging.getLogger("ztunnel::engine")

HEADER_ROOM: Final = 9  # for what a tunnel writes before a payload
# With its header a chunk fills sixteen TLS records of 16 KiB exactly (RFC 8446 5.1).
CHUNK_BYTES: Final = 16 * 16_384 - HEADER_ROOM
READ_BYTES: Final = 262_144
CHUNKS_A_TURN: Final = 2  # what one pump moves before the others get their turn
SHARE_SECONDS: Final = 0.001  # what one pump works before the others get their turn, where bytes do not count
ROUNDS_SECONDS: Final = 0.004  # after which the network is looked at again, whoever still waits for a round
_EVENTS_A_POLL: Final = 64
Worked = Callable[[float, float], None]
"""Told before each poll: the seconds worked since the last, by pumps and tasks, and how long it may wait."""

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
        self._may_stand_in_front = in_front
        self._place: trio_wait.InFront | None = None
        self._worked: Worked | None = None
        self._epoll = select.epoll()
        self._ends: dict[int, End] = {}
        self.moved = 0  # events so far, and rounds asked for: bulk work makes way while it grows
        self._later: deque[End] = deque()
        self._writers: list[Writer] = []
        self._in_turn = False
        self._trios_fd = -1
        self._kick_fd = -1
        self._polled_at = time.monotonic()
        self.is_woken = False  # see trio_wait.Mover, this and the next
        self.slept_seconds = 0.0
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
        self.is_woken = True

    def tell_waits(self, worked: Worked) -> bool:
        """Call `worked` before each poll from now on; False: as a task, we do not know of others' work."""
        if self._place is None:
            return False
        self._worked = worked
        return True

    @property
    def registered(self) -> int:
        """How many descriptors are watched."""
        return len(self._ends)

    @property
    def is_in_front(self) -> bool:
        """Whether the engine stands in front of Trio's wait, once `run` has started."""
        return self._place is not None

    # -- the drivers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move bytes until cancelled."""
        try:
            if self._may_stand_in_front:
                await self._run_in_front(task_status)
            await self._run_as_task(task_status)
        finally:
            self._epoll.close()

    async def _run_in_front(self, task_status: trio.TaskStatus[None]) -> None:
        """Stand in front of Trio's wait until cancelled. Returns if that is not to be had."""
        place = trio_wait.find(self)
        if place is not None:
            self._trios_fd = place.fileno()
            self._epoll.register(self._trios_fd, select.EPOLLIN)
            place.enter()
            try:
                if await trio_wait.proves_itself(self):
                    self._place = place
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                place.leave()
                self._place = None
                self._epoll.unregister(self._trios_fd)
                self._trios_fd = -1
        log.warning("no way into the wait of Trio %s: the engine runs as a task, slower", trio.__version__)

    async def _run_as_task(self, task_status: trio.TaskStatus[None]) -> None:
        self._kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._epoll.register(self._kick_fd, select.EPOLLIN | select.EPOLLET)
            task_status.started()
            while True:
                if self._later or self._writers:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self.turn(0)
        finally:
            os.close(self._kick_fd)
            self._kick_fd = -1

    def turn(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for events and run their pumps, and those waiting for another round.

        Returns whether Trio's own epoll has something for Trio. Raises nothing.
        """
        self._in_turn = True
        if self._writers:
            self._write_out()
        if self._later or self.is_woken:
            timeout = 0
        began = time.monotonic()
        if self._worked is not None:
            self._worked(began - self._polled_at, timeout)
        events = self._epoll.poll(timeout, _EVENTS_A_POLL)
        self._polled_at = time.monotonic()
        self.slept_seconds = self._polled_at - began
        trio_is_ready = False
        ends = self._ends
        for fd, flags in events:
            end = ends.get(fd)
            if end is None:
                trio_is_ready |= fd == self._trios_fd  # else an end unregistered a moment ago, or the kick
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
        later, until = self._later, time.monotonic() + ROUNDS_SECONDS
        for _ in range(len(later)):
            self.moved += 1
            end = later.popleft()
            try:
                end.go_on()
            except Exception as error:  # noqa: BLE001  # a pump's failure is its own connection's
                _break(end, error)
            if time.monotonic() > until:
                return

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
