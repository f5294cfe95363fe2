"""What Trio is told, and when, by a mover that moves nothing; with the real one: net/test_engine.py."""

import select
import time

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.shortcuts import trio_wait
from ztunnel_trio.shortcuts.trio_wait import Events, InFront


class Trios:
    """Stands for what Trio waits with."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.asked: list[float] = []
        self.forced = 0

    def get_events(self, timeout: float) -> Events:
        self.asked.append(timeout)
        return [(7, 1)]

    def process_events(self, events: Events) -> None:
        raise AssertionError

    def force_wakeup(self) -> None:
        self.forced += 1

    def statistics(self) -> str:
        return "Trio's own"


class Running:
    """Stands for the running Trio."""

    def __init__(self) -> None:
        self.trios = Trios()
        self.io_manager: trio_wait.TriosWait | InFront = self.trios


class Mover:
    """Works for so long a turn, and says so often that Trio has nothing to do."""

    def __init__(self, *, seconds: float = 0, quiet_turns: int = 0) -> None:
        self.is_woken = True  # from before
        self.slept_seconds = 0.0
        self.seconds, self.quiet_turns = seconds, quiet_turns
        self.timeouts: list[float] = []

    def turn(self, timeout: float) -> bool:
        self.timeouts.append(timeout)
        assert not self.is_woken
        time.sleep(self.seconds)
        return len(self.timeouts) > self.quiet_turns


def place(mover: Mover) -> tuple[InFront, Trios]:
    running = Running()
    return InFront(mover, running, running.trios), running.trios


@pytest.mark.parametrize("timeout", [0.0, 10.0])
def test_trios_events_are_trios_own_to_get(timeout: float) -> None:
    front, trios = place(Mover())

    assert front.get_events(timeout) == [(7, 1)]
    assert trios.asked == [0]


def test_when_the_time_is_over_there_was_nothing() -> None:
    mover = Mover(seconds=0.002, quiet_turns=1 << 30)
    front, trios = place(mover)

    assert front.get_events(0) == []
    assert front.get_events(0.01) == []
    assert trios.asked == []
    assert mover.timeouts[0] == 0
    assert 0.011 > mover.timeouts[1] > mover.timeouts[2] > 0


def test_a_task_that_was_woken_ends_the_wait() -> None:
    class Waking(Mover):
        def turn(self, timeout: float) -> bool:
            super().turn(timeout)
            self.is_woken = True
            return False

    front, trios = place(Waking())

    assert front.get_events(10) == []
    assert trios.asked == []


def test_long_turns_do_not_keep_trio_waiting_for_ever() -> None:
    mover = Mover(seconds=0.01, quiet_turns=1 << 30)
    front, trios = place(mover)

    assert front.get_events(10) == [(7, 1)]
    assert trios.forced == 1
    assert len(mover.timeouts) <= 2 + trio_wait.LONGEST_STAY / 0.01


def test_who_sleeps_keeps_nobody_waiting() -> None:
    mover = Mover(seconds=0.01, quiet_turns=9)
    mover.slept_seconds = 0.009
    front, trios = place(mover)

    front.get_events(10)
    assert trios.forced == 0
    assert len(mover.timeouts) == 10


def test_what_it_does_not_know_is_passed_on() -> None:
    mover = Mover()
    running = Running()
    front = InFront(mover, running, running.trios)

    front.enter()
    entered = running.io_manager
    front.force_wakeup()
    assert running.trios.forced == 1
    assert getattr(front, "statistics")() == "Trio's own"  # noqa: B009  mypy knows no such method
    front.leave()
    assert (entered, running.io_manager) == (front, running.trios)


def test_outside_trio_there_is_no_place() -> None:
    assert trio_wait.find(Mover()) is None


@trio_test
async def test_in_this_trio_there_is_one() -> None:
    found = trio_wait.find(Mover())

    assert found is not None
    assert found.fileno() >= 0


def test_a_guest_leaves_trios_wait_to_its_host() -> None:
    """Trio waits in a thread there."""
    found: list[InFront | None] = []
    to_do: list[object] = []

    async def main() -> None:
        found.append(trio_wait.find(Mover()))

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=to_do.append, done_callback=lambda outcome: found.append(None)
    )
    deadline = time.monotonic() + 5
    while len(found) < 2 and time.monotonic() < deadline:
        if to_do:
            step = to_do.pop(0)
            assert callable(step)
            step()
    assert found == [None, None]
