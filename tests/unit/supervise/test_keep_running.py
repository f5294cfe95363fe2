"""The one rule by which parts run again."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import trio

from tests.fakes.cancellation import cancelled_everywhere_now
from tests.fakes.trio_test import trio_test
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.supervise.keep_running import Again, Done, Failed, Part, RunEnd, Supervisor
from ztunnel_trio.supervise.readiness import Readiness

DOUBLING = Backoff(first_seconds=1, limit_seconds=8)


class Broken(Exception):
    """A bug."""


@dataclass(eq=False)
class Script:
    """A part that ends as it is told, and notes when it ran and what it was told to write."""

    ends: list[RunEnd | Exception]
    ran_at: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    lasting: float = 0.0

    async def run(self) -> RunEnd:
        self.ran_at.append(trio.current_time())
        await trio.sleep(self.lasting)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    def failed(self, *, is_first: bool = False, backoff: Backoff | None = None) -> Failed:
        return Failed(self.waits.append, is_first=is_first, backoff=backoff)

    async def supervise(self, part: Part, **options: Callable[[float], object]) -> None:
        supervisor = Supervisor(random.Random(1), self.counted.append)
        await supervisor.keep_running(part, self.run, **options)  # type: ignore[arg-type]


@trio_test(autojump=True)
async def test_failures_in_a_row_wait_longer_and_are_counted() -> None:
    script = Script([])
    script.ends = [*(script.failed() for _ in range(5)), Done()]

    await script.supervise(Part(kind="agent", backoff=DOUBLING))

    assert script.waits == [1, 2, 4, 8, 8]
    assert [at - script.ran_at[0] for at in script.ran_at] == pytest.approx([0, 1, 3, 7, 15, 23])
    assert script.counted == ["agent"] * 5


@trio_test(autojump=True)
async def test_an_ordinary_end_begins_the_count_anew_unless_it_says_otherwise() -> None:
    script = Script([])
    script.ends = [
        script.failed(), script.failed(), Again(), script.failed(), Again(is_success=False),
        script.failed(), script.failed(is_first=True), Done(),
    ]  # fmt: skip

    await script.supervise(Part(kind="agent", backoff=DOUBLING))

    assert script.waits == [1, 2, 1, 2, 1]


@trio_test(autojump=True)
async def test_a_run_that_lasted_begins_the_count_anew() -> None:
    script = Script([], lasting=60)
    script.ends = [script.failed(), script.failed(), Done()]

    await script.supervise(Part(kind="agent", backoff=DOUBLING, healthy_seconds=60))

    assert script.waits == [1, 1]


@trio_test(autojump=True)
async def test_a_failure_may_bring_its_own_back_off() -> None:
    script = Script([])
    script.ends = [
        script.failed(),
        script.failed(backoff=Backoff(first_seconds=0.005, limit_seconds=1)),
        Done(),
    ]

    await script.supervise(Part(kind="agent", backoff=DOUBLING))

    assert script.waits == [1, 0.01]


@trio_test(autojump=True)
async def test_a_bug_is_told_with_its_traceback_and_the_part_runs_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script([Broken("here"), Done()])

    await script.supervise(Part(kind="local mesh", backoff=DOUBLING))

    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.ERROR,
        "local mesh failed, starting it again in 1s",
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ExceptionGroup)
    assert script.counted == ["local mesh"]
    assert len(script.ran_at) == 2


@trio_test(autojump=True)
async def test_what_is_fatal_goes_up() -> None:
    script = Script([Broken("beyond repair")])

    with pytest.RaisesGroup(Broken):
        await script.supervise(Part(kind="agent", fatal=(Broken,)))

    assert script.counted == []


@trio_test(autojump=True)
async def test_the_gate_is_closed_by_failures_only() -> None:
    gate = Readiness().gate("proxy")
    script = Script([])
    script.ends = [Again(), Done()]
    gate.open()

    await script.supervise(Part(kind="agent", gate=gate))
    stayed_open = gate.is_open
    script.ends = [script.failed(), Done()]
    await script.supervise(Part(kind="agent", gate=gate))

    assert stayed_open
    assert not gate.is_open


@trio_test(autojump=True)
async def test_a_drain_ends_the_wait_and_the_part() -> None:
    drain = Drain(5)
    script = Script([])
    script.ends = [script.failed(backoff=Backoff(first_seconds=1000, limit_seconds=1000))]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: script.supervise(Part(kind="agent"), pause=drain.leaves_time))
        await trio.sleep(1)
        drain.request("SIGTERM")

    assert len(script.ran_at) == 1


def test_cancelled_anywhere_nothing_is_left() -> None:
    async def scenario() -> None:
        script = Script([Broken("x"), Again(1), Done()])
        await script.supervise(Part(kind="agent", log=logging.getLogger("nobody")))

    assert cancelled_everywhere_now(scenario, autojump=True) > 3
