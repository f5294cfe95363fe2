"""How long a pod's questions may take, and how long it waits when that is spent."""

from dataclasses import dataclass

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.dns.share import (
    BUSY_FOR_SECONDS,
    BUSY_TURN_SECONDS,
    PART_OF_A_POD,
    PART_OF_ALL_PODS,
    SAVED_SECONDS,
    TURN_SECONDS,
    LoopAllowance,
    Share,
)


@dataclass
class World:
    """A clock, and what else moves."""

    now: float = 100.0
    moved: int = 0

    def share(self, whole: LoopAllowance | None = None) -> Share:
        return Share(
            whole or LoopAllowance(PART_OF_ALL_PODS), lambda: self.moved, lambda: self.now, lambda: self.now
        )

    def turn(self, share: Share, seconds: float) -> float:
        """How long a pod waits after a turn of that length."""
        share.begin()
        self.now += seconds
        return share.end()


def test_a_turn_ends_within_a_millisecond() -> None:
    world = World()
    share = world.share()

    share.begin()
    assert not share.is_over
    world.now += TURN_SECONDS
    assert share.is_over
    assert TURN_SECONDS < 0.001


def test_turns_are_short_while_something_moves() -> None:
    world = World()
    share = world.share()
    world.turn(share, 0.0)

    world.moved = 1
    share.begin()
    world.now += BUSY_TURN_SECONDS
    assert share.is_over
    share.end()
    world.now += BUSY_FOR_SECONDS
    share.begin()
    world.now += BUSY_TURN_SECONDS
    assert not share.is_over


def test_what_is_begun_elsewhere_is_part_of_the_turn() -> None:
    share = World().share()

    share.begin()
    share.charge(TURN_SECONDS)

    assert share.is_over


def test_nobody_waits_while_nothing_else_moves() -> None:
    world = World()
    share = world.share()

    assert all(world.turn(share, 0.001) == 0.0 for _ in range(1000))


def test_who_has_spent_his_part_waits_while_something_moves() -> None:
    world = World()
    share = world.share()
    spent = began = waited = 0.0
    began = world.now

    while world.now - began < 10.0:
        world.moved += 1
        wait = world.turn(share, 0.0002)
        world.now += wait
        waited += wait
        spent += 0.0002

    assert waited > 5.0
    assert spent == pytest.approx(10.0 * PART_OF_A_POD + SAVED_SECONDS, rel=0.02)


def test_many_pods_have_a_part_together() -> None:
    world, whole = World(), LoopAllowance(PART_OF_ALL_PODS)
    shares = [world.share(whole) for _ in range(10)]
    ready = dict.fromkeys(range(10), 0.0)
    spent, began = 0.0, world.now

    while world.now - began < 10.0:
        world.moved += 1
        pod = min(ready, key=ready.__getitem__)
        world.now = max(world.now, ready[pod])
        ready[pod] = world.turn(shares[pod], 0.0002) + world.now
        spent += 0.0002

    assert spent <= 10.0 * PART_OF_ALL_PODS * 1.1 + SAVED_SECONDS


def test_a_burst_after_a_while_is_free() -> None:
    world = World()
    share = world.share()
    for _ in range(1000):
        world.moved += 1
        world.now += world.turn(share, 0.0002)
    world.now += 1.0
    world.moved += 1

    assert world.turn(share, SAVED_SECONDS / 2) == 0.0


@trio_test(autojump=True)
async def test_resting_lets_others_run_and_waits_for_what_is_owed() -> None:
    world = World()
    share = world.share()
    began = trio.current_time()
    share.begin()
    await share.rest()
    assert trio.current_time() == began

    world.moved += 1
    share.begin()
    world.now += 0.05
    await share.rest()
    assert trio.current_time() > began + 0.1
