import logging
from datetime import UTC, datetime, timedelta

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.supervise.wall_clock import LOOK_SECONDS, WallClock, utc_now

START = datetime(2026, 5, 1, tzinfo=UTC)


@trio_test(autojump=True)
async def test_steps_either_way_are_told_within_one_look(caplog: pytest.LogCaptureFixture) -> None:
    ahead = timedelta()
    counted: list[str] = []
    clock = WallClock(
        lambda: START + ahead + timedelta(seconds=trio.current_time()), on_step=lambda: counted.append("step")
    )
    caplog.set_level(logging.WARNING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clock.run)
        for version, seconds in enumerate((900, -3600), start=1):
            await trio.sleep(0.5)
            ahead += timedelta(seconds=seconds)
            with trio.fail_after(LOOK_SECONDS + 0.1):
                found, step = await clock.steps.newer_than(version - 1)
            assert (found, round(step)) == (version, seconds)
        nursery.cancel_scope.cancel()

    assert counted == ["step", "step"]
    assert [record.getMessage()[:35] for record in caplog.records] == [
        "the wall clock has moved by +900 s ",
        "the wall clock has moved by -3600 s",
    ]


@trio_test(autojump=True)
async def test_a_clock_that_is_slewed_has_not_stepped() -> None:
    clock = WallClock(lambda: START + timedelta(seconds=trio.current_time() * 1.0005))
    with trio.move_on_after(3600):
        await clock.run()

    assert clock.steps.version == 0


def test_now_is_aware_utc() -> None:
    assert utc_now().utcoffset() == timedelta()
