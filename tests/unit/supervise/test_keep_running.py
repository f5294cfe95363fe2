import random
from itertools import pairwise

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.supervise.keep_running import Backoff, first_of, keep_running

PATIENT = Backoff(first_seconds=1, limit_seconds=8, healthy_seconds=60)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (10_000, 8)]
)
def test_the_wait_doubles_up_to_its_limit(failures: int, seconds: float) -> None:
    assert PATIENT.delay(failures, random.Random(0)) == seconds


def test_jitter_stays_within_its_share() -> None:
    backoff = Backoff(first_seconds=10, limit_seconds=100, jitter=0.2)
    rng = random.Random(1)

    delays = [backoff.delay(1, rng) for _ in range(200)]

    assert 8 <= min(delays) < 9 < 11 < max(delays) <= 12


@trio_test(autojump=True)
async def test_a_failing_child_is_started_again_after_growing_waits() -> None:
    starts: list[float] = []

    async def child() -> None:
        starts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise OSError("no route")

    with trio.move_on_after(14):
        await keep_running("child", child, backoff=PATIENT, rng=random.Random(0))

    assert [round(later - earlier) for earlier, later in pairwise(starts)] == [1, 2, 4]


@trio_test(autojump=True)
async def test_a_child_that_ran_long_enough_starts_from_the_first_wait_again() -> None:
    ends: list[float] = []
    starts: list[float] = []

    async def child() -> None:
        starts.append(trio.current_time())
        await trio.sleep(60 if len(starts) == 4 else 0)
        ends.append(trio.current_time())

    with trio.move_on_after(70):
        await keep_running("child", child, backoff=PATIENT, rng=random.Random(0))

    assert round(starts[4] - ends[3]) == 1


@trio_test(autojump=True)
async def test_a_fatal_failure_leaves() -> None:
    async def child() -> None:
        await trio.lowlevel.checkpoint()
        raise ConfigError("mismatch")

    with pytest.RaisesGroup(ConfigError):
        await keep_running("child", child, backoff=PATIENT, fatal=(ConfigError,), rng=random.Random(0))


@trio_test(autojump=True)
async def test_a_fatal_failure_beside_an_ordinary_one_leaves_alone() -> None:
    async def child() -> None:
        await trio.lowlevel.checkpoint()
        raise ExceptionGroup("both", [OSError("no route"), ConfigError("mismatch")])

    with pytest.RaisesGroup(ConfigError):
        await keep_running("child", child, backoff=PATIENT, fatal=(ConfigError,), rng=random.Random(0))


def test_it_ends_when_cancelled_at_any_step() -> None:
    async def scenario() -> None:
        async def child() -> None:
            await trio.sleep(1)
            raise OSError("again")

        with trio.move_on_after(5):
            await keep_running("child", child, backoff=PATIENT, rng=random.Random(0))

    assert cancelled_everywhere_now(scenario) > 3


def test_the_first_of_nested_groups_is_found() -> None:
    inner = OSError("inner")

    assert first_of(ExceptionGroup("a", [ExceptionGroup("b", [inner])])) is inner
