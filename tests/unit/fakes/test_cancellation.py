import os

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere, cancelled_everywhere_now
from tests.fakes.trio_test import trio_test


async def three_steps() -> None:
    for _ in range(3):
        await trio.lowlevel.checkpoint()


@trio_test
async def test_every_step_of_a_scenario_is_cancelled_once() -> None:
    assert await cancelled_everywhere(three_steps) >= 3


def test_a_descriptor_left_open_is_found() -> None:
    leaked: list[int] = []

    async def scenario() -> None:
        leaked.append(os.open("/dev/null", os.O_RDONLY))
        await trio.lowlevel.checkpoint()
        os.close(leaked.pop())

    with pytest.raises(AssertionError, match=r"descriptors are still open: \d+ -> /dev/null"):
        cancelled_everywhere_now(scenario)
    os.close(leaked.pop())


def test_the_check_of_the_caller_runs_after_each_cancellation() -> None:
    checks: list[None] = []

    steps = cancelled_everywhere_now(three_steps, check=lambda: checks.append(None))

    assert len(checks) == steps


def test_an_endless_scenario_is_given_up() -> None:
    async def scenario() -> None:
        with trio.CancelScope(shield=True):
            for _ in range(50):
                await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="more than 10 steps"):
        cancelled_everywhere_now(scenario, most_steps=10)
