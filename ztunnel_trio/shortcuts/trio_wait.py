"""Standing in front of Trio's wait for I/O.

*Saves* a task switch and two system calls for every batch of events, and a system call for every task that
is woken: a round trip takes 1.2 instead of 1.6 to 2.7 times the reference's (decision 0002).

How Trio waits
--------------
`trio.run` is one loop (`unrolled_run` in `trio/_core/_run.py`). Once a scheduler step it computes how long
it may sleep – not at all while a task is runnable, else until the next deadline – and calls
`runner.io_manager.get_events(timeout)`. What comes back goes to `runner.io_manager.process_events` unseen,
and must be false if and only if the time was over: an empty answer lets `wait_all_tasks_blocked` return and
a jumping clock jump, if no task is runnable. Then due deadlines are cancelled and the runnable tasks are
run.

`InFront` takes the place of `runner.io_manager`. It answers `get_events` itself and passes on everything
else: `process_events`, `force_wakeup`, `statistics` (for `trio.lowlevel.current_statistics`), `close`, and
the `wait_readable`, `wait_writable` and `notify_closing` that Trio's public functions call on it. In
`get_events` the mover waits in its own epoll, of which Trio's is one member, level-triggered: an epoll is
readable while one of its descriptors is. So nothing that could wake Trio is missed: its descriptors,
`force_wakeup` (which threads, signals and `TrioToken.run_sync_soon` use; a byte in a socket pair that
Trio's epoll holds), and its deadlines, which are the timeout.

We return to Trio
- with its events, asked of its own manager with no timeout, as soon as its epoll has some;
- with nothing, when the time is over;
- with nothing, when the mover made a task runnable (`is_woken`). Trio decided how long to sleep before
  that, so nobody else would tell it. Trio looks for runnable tasks next, whatever we answered; the rule
  about empty answers is kept, as it also asks that none be runnable;
- after `LONGEST_STAY` without sleep, with the answer of `force_wakeup`, so that under endless traffic
  whatever Trio does once a step is done.

What can go wrong
-----------------
*An exception* that left `get_events` would end the whole run as a bug of Trio's. The mover's promise is
that `turn` raises none.

*Signals*: Python runs their handlers between two instructions of the main thread, so inside a pump as well.
Trio's own handler for SIGINT does not raise here: frames below its loop are protected. The poll goes on by
itself after a handler (PEP 475), and ends at once if the handler wrote to Trio's wake-up socket, as Trio's
do.

*Threads*: everything here runs in the thread of `trio.run`. Others reach it by `run_sync_soon` only.

*Guest mode* waits in a thread of its own: not taken. *A second engine* in the same run would stand in front
of the first, whose epoll it does not know: not taken, it runs as a task.

*Another Trio* may name things otherwise, wait by other means, or keep `get_events` in a variable, in which
case we would be there and never be asked. So this is not believed but proved, at each start:
`proves_itself` sends an event through the mover to a task that waits for a descriptor of Trio's. What an
upgrade must be read for is what the proof cannot show: the rule about empty answers, that `io_manager` is
looked up at each step, that nothing is computed between the timeout and the call, and that SIGINT stays
protected.
"""

import logging
import os
import select
import sys
import time
from contextlib import closing
from typing import Final, Protocol

import trio

log = logging.getLogger("ztunnel::engine")

Events = list[tuple[int, int]]
LONGEST_STAY: Final = 0.05  # seconds without sleep that Trio is kept waiting
SLEPT: Final = 0.001  # seconds in a poll from which on nobody has been kept waiting
PROOF_SECONDS: Final = 1.0  # for an event that is there already
_USED: Final = ("get_events", "process_events", "force_wakeup")


class Mover(Protocol):
    """Who works in front of Trio: the engine."""

    is_woken: bool  # a task was made runnable since this was last set to False
    slept_seconds: float  # in the poll of the last turn

    def turn(self, timeout: float) -> bool:
        """Wait for events, up to so many seconds, and work on them; whether Trio's epoll has some.

        Must not raise, and not wait if `is_woken`.
        """


class TriosWait(Protocol):
    """What we use of the object Trio waits for I/O with: `trio._core._io_epoll.EpollIOManager`."""

    _epoll: select.epoll

    def get_events(self, timeout: float) -> Events: ...

    def process_events(self, events: Events) -> None: ...

    def force_wakeup(self) -> None: ...


class Runner(Protocol):
    """What we use of the running Trio: `trio._core._run.Runner`."""

    io_manager: "TriosWait | InFront"


class InFront:
    """Answers Trio's wait until `leave`. See the module's text."""

    def __init__(self, mover: Mover, runner: Runner, trios: TriosWait) -> None:
        self._mover = mover
        self._runner = runner
        self._trios = trios
        self._epoll = trios._epoll
        self.process_events = trios.process_events
        self.force_wakeup = trios.force_wakeup

    def __getattr__(self, name: str) -> object:
        return getattr(self._trios, name)

    def fileno(self) -> int:
        """Trio's own epoll."""
        return self._epoll.fileno()

    def enter(self) -> None:
        """Take Trio's place from its next wait on. Its epoll is a member of the mover's by then."""
        self._runner.io_manager = self

    def leave(self) -> None:
        """Trio waits by itself again."""
        self._runner.io_manager = self._trios

    def get_events(self, timeout: float) -> Events:
        """Work until Trio has something to do, and answer with what that is."""
        mover = self._mover
        mover.is_woken = False
        if timeout <= 0:
            return self._trios.get_events(0) if mover.turn(0) else []
        busy_since = now = time.monotonic()
        until = now + timeout
        while True:
            if mover.turn(until - now):
                return self._trios.get_events(0)
            if mover.is_woken:
                return []
            now = time.monotonic()
            if now >= until:
                return []
            if mover.slept_seconds > SLEPT:
                busy_since = now
            elif now - busy_since > LONGEST_STAY:
                self._trios.force_wakeup()  # an answer that is not empty: the wait was cut short
                return self._trios.get_events(0)


def find(mover: Mover) -> InFront | None:
    """A place in front of the running Trio; None where its insides are not as we know them."""
    insides = sys.modules.get("trio._core._run")
    runner: Runner | None = getattr(getattr(insides, "GLOBAL_RUN_CONTEXT", None), "runner", None)
    manager: TriosWait | InFront | None = getattr(runner, "io_manager", None)
    if runner is None or manager is None or isinstance(manager, InFront):
        return None
    epoll = getattr(manager, "_epoll", None)
    is_known = (
        isinstance(epoll, select.epoll)
        and not epoll.closed
        and not getattr(runner, "is_guest", True)
        and all(callable(getattr(manager, name, None)) for name in _USED)
    )
    return InFront(mover, runner, manager) if is_known else None


class Provable(Mover, Protocol):
    """What the proof needs of the engine."""

    def register(self, fd: int, end: "_Probe") -> None: ...

    def unregister(self, fd: int) -> None: ...


class _Probe:
    """An end of the engine whose event wakes the task that waits for it."""

    def __init__(self, engine: Mover, task: trio.lowlevel.Task) -> None:
        self._engine = engine
        self._task: trio.lowlevel.Task | None = task

    def ready(self, _flags: int) -> None:
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task, self._engine.is_woken = None, True

    def go_on(self) -> None:
        """Nothing was asked for."""

    def broke(self, error: Exception) -> None:
        log.debug("the proof of the way into trio's wait: %r", error)

    def abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


async def proves_itself(engine: Provable) -> bool:
    """Whether events get through: the engine's to its end and from there to a task, and Trio's to a task."""
    with (
        closing(_Eventfd()) as of_engine,
        closing(_Eventfd()) as of_trio,
        trio.move_on_after(PROOF_SECONDS) as waiting,
    ):
        probe = _Probe(engine, trio.lowlevel.current_task())
        engine.register(of_engine.fd, probe)
        try:
            await trio.lowlevel.wait_task_rescheduled(probe.abort)
        finally:
            engine.unregister(of_engine.fd)
        await trio.lowlevel.wait_readable(of_trio.fd)
    return not waiting.cancelled_caught


class _Eventfd:
    """Readable from the beginning."""

    def __init__(self) -> None:
        self.fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)
