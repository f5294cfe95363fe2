"""Bulk work makes way for others: long slices alone, short ones in company, a share under load."""

from dataclasses import dataclass

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.supervise.pace import (
    BUSY_FOR_SECONDS,
    LONG_SECONDS,
    REST_SECONDS,
    SHORT_SECONDS,
    Pace,
)

STEP = 0.000_01


@dataclass(eq=False)
class Machine:
    """A clock that passes when somebody says so, and a count of what has moved."""

    seconds: float = 0.0
    moved: int = 0

    def now(self) -> float:
        return self.seconds

    def activity(self) -> int:
        return self.moved

    def length(self, pace: Pace, part: float = 1.0) -> float:
        """How long the next slice is."""
        pace.begin(part)
        began = self.seconds
        while not pace.is_over:
            self.seconds += STEP
        return self.seconds - began

    async def rest(self, pace: Pace, *, moves: int = 0, takes: float = 0.0) -> float:
        """One rest in which so much moves and so much time passes; Trio's clock's part of it."""

        async def others() -> None:
            self.moved += moves
            self.seconds += takes

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await pace.rest()
            if moves and self.moved == 0:  # the turn was ours before it was theirs
                await pace.rest()
        return trio.current_time() - began


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=2 * STEP)


@trio_test(autojump=True)
async def test_alone_slices_are_long_and_a_turn_is_rest_enough() -> None:
    machine = Machine()
    pace = Pace(machine.activity, machine.now)

    assert not pace.is_busy
    for _ in range(3):
        assert machine.length(pace) == about(LONG_SECONDS)
        assert await machine.rest(pace) == 0
    assert machine.length(pace, 0.5) == about(LONG_SECONDS / 2)


@trio_test(autojump=True)
async def test_in_company_slices_are_short_and_rests_long_for_a_while() -> None:
    machine = Machine()
    pace = Pace(machine.activity, machine.now)
    await moved(machine, pace)

    assert pace.is_busy
    assert machine.length(pace) == about(SHORT_SECONDS)
    assert await machine.rest(pace) == pytest.approx(REST_SECONDS)
    machine.seconds += BUSY_FOR_SECONDS
    assert machine.length(pace) == about(LONG_SECONDS)


@trio_test(autojump=True)
async def test_under_heavy_load_the_work_keeps_a_share() -> None:
    machine = Machine()
    pace = Pace(machine.activity, machine.now)
    await moved(machine, pace)

    await machine.rest(pace, moves=1, takes=0.002)

    assert machine.length(pace) == about(0.0002)


async def moved(machine: Machine, pace: Pace) -> None:
    """Something moves in a turn."""
    for _ in range(3):  # a turn may be ours before it is theirs
        await machine.rest(pace, moves=1)
