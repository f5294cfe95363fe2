import time

import pytest
import trio
from trio.testing import MockClock

from tests.fakes.trio_test import trio_test


def test_a_jumping_clock_makes_sleep_free() -> None:
    @trio_test(autojump=True)
    async def sleepy() -> None:
        await trio.sleep(3600)

    began = time.monotonic()
    sleepy()

    assert time.monotonic() - began < 60


def test_a_given_clock_is_used() -> None:
    clock = MockClock(rate=0)

    @trio_test(clock=clock)
    async def look() -> None:
        clock.jump(12)
        await trio.lowlevel.checkpoint()

    look()

    assert clock.current_time() >= 12


def test_a_hanging_test_fails() -> None:
    @trio_test(seconds=0.01)
    async def hang() -> None:
        await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        hang()
