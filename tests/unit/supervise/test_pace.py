"""Bulk work makes way for others: long slices alone, short ones in company, a share under load."""

from dataclasses import dataclass, field

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.supervise.pace import (
    BUSY_FOR_SECONDS,
    LONG_SECONDS,
    SHORT_SECONDS,
    TURNS_AT_MOST,
    Pace,
)

IDLE_TURN = 0.000_02


@dataclass(eq=False)
class Clock:
    """Seconds that pass when somebody looks: what each of the next turns takes, then idle ones."""

    seconds: float = 0.0
    turns: list[float] = field(default_factory=list)
    looked: int = 0

    def now(self) -> float:
        return self.seconds

    def pass_turn(self) -> None:
        self.looked += 1
        self.seconds += self.turns.pop(0) if self.turns else IDLE_TURN


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock whose turns pass with the checkpoints of the loop."""
    found = Clock()

    async def checkpoint() -> None:
        found.pass_turn()

    monkeypatch.setattr(trio.lowlevel, "checkpoint", checkpoint)
    return found


def length(pace: Pace, clock: Clock) -> float:
    """How long the next slice is."""
    pace.begin()
    began = clock.seconds
    while not pace.is_over:
        clock.seconds += 0.000_01
    return clock.seconds - began


def test_alone_slices_are_long_and_one_turn_is_rest_enough(clock: Clock) -> None:
    pace = Pace(clock.now)

    async def main() -> None:
        for _ in range(3):
            assert length(pace, clock) == pytest.approx(LONG_SECONDS, abs=0.000_02)
            await pace.rest()

    trio.run(main)
    assert clock.looked == 3


def test_in_company_slices_are_short_for_a_while_and_wait_for_an_idle_turn(clock: Clock) -> None:
    pace = Pace(clock.now)
    clock.turns = [0.0001, 0.0001]

    async def main() -> None:
        await pace.rest()
        assert clock.looked == 3
        assert length(pace, clock) == pytest.approx(SHORT_SECONDS, abs=0.000_02)
        clock.seconds += BUSY_FOR_SECONDS
        assert length(pace, clock) == pytest.approx(LONG_SECONDS, abs=0.000_02)

    trio.run(main)


def test_under_steady_load_the_work_keeps_a_share(clock: Clock) -> None:
    pace = Pace(clock.now)
    clock.turns = [0.000_25] * 100

    async def main() -> None:
        await pace.rest()
        assert clock.looked == TURNS_AT_MOST
        assert length(pace, clock) == pytest.approx(0.0005, abs=0.000_02)

    trio.run(main)


@trio_test
async def test_others_really_run_while_it_rests() -> None:
    ran: list[int] = []

    async def other() -> None:
        ran.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(2):  # the first turn may be ours before it is theirs
            await Pace().rest()
        assert ran == [1]
