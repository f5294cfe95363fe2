"""Signals end the process once, and cleanly."""

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.app import drain_on_signals
from ztunnel_trio.early_signals import ENDING
from ztunnel_trio.supervise.drain import Drain


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What the process does with the signals, as it was."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_asks_for_the_drain_and_names_itself(number: signal.Signals) -> None:
    @trio_test
    async def ask() -> None:
        drain = Drain(1.0)
        async with trio.open_nursery() as nursery:
            await nursery.start(drain_on_signals, drain)
            os.kill(os.getpid(), number)
            await drain.requested.wait()
            os.kill(os.getpid(), signal.SIGTERM)  # one more changes nothing
            nursery.cancel_scope.cancel(reason="drained")
        assert drain.reason == number.name

    ask()


@trio_test
async def test_a_signal_after_the_drain_does_not_spoil_the_exit() -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(drain_on_signals, Drain(1.0))
        nursery.cancel_scope.cancel(reason="drained")

    for number in ENDING:
        os.kill(os.getpid(), number)
