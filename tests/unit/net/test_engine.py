import os
import select
import sys
import time

import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.fakes.trio_test import trio_test
from ztunnel_trio.net import engine as engine_module
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.shortcuts import trio_wait

drivers = pytest.mark.parametrize("in_front", [True, False])


class Pipe:
    """An end that reads a pipe and says what came."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reading, self.writing = os.pipe2(os.O_NONBLOCK)
        self.got = b""
        self.rounds = 0
        self.wanted_rounds = 0
        self.arrived = Once(engine)
        self.raises: Exception | None = None
        self.error: Exception | None = None
        engine.register(self.reading, self)

    def ready(self, flags: int) -> None:
        if flags & select.EPOLLIN:
            if self.raises is not None:
                raise self.raises
            self.got += os.read(self.reading, 100)
            self.arrived.set()

    def go_on(self) -> None:
        self.rounds += 1
        if self.rounds < self.wanted_rounds:
            self.engine.again(self)
        else:
            self.arrived.set()

    def broke(self, error: Exception) -> None:
        self.error = error
        self.engine.unregister(self.reading)
        self.arrived.set()

    def close(self) -> None:
        self.engine.unregister(self.reading)
        os.close(self.reading)
        os.close(self.writing)


@drivers
@trio_test
async def test_an_event_runs_the_end_and_wakes_the_waiting_task(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        pipe = Pipe(engine)
        os.write(pipe.writing, b"hello")
        with trio.fail_after(5):
            await pipe.arrived.wait()

        assert pipe.got == b"hello"
        pipe.close()
        assert engine.registered == 0
        nursery.cancel_scope.cancel()


@drivers
@trio_test
async def test_another_round_is_run_even_when_asked_for_outside_one(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await trio.sleep(0.01)
        pipe = Pipe(engine)
        pipe.wanted_rounds = 100
        engine.again(pipe)
        with trio.fail_after(5):
            await pipe.arrived.wait()

        assert pipe.rounds == 100
        pipe.close()
        nursery.cancel_scope.cancel()


@drivers
@trio_test
async def test_what_a_pump_raises_ends_its_own_end_only(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        bad, good = Pipe(engine), Pipe(engine)
        bad.raises = RuntimeError("a bug")
        os.write(bad.writing, b"x")
        with trio.fail_after(5):
            await bad.arrived.wait()
        os.write(good.writing, b"y")
        with trio.fail_after(5):
            await good.arrived.wait()

        assert bad.error is bad.raises
        bad.close()
        good.close()
        nursery.cancel_scope.cancel()


@drivers
@trio_test
async def test_an_end_that_cannot_even_be_broken_stops_nobody(in_front: bool) -> None:
    class Stubborn(Pipe):
        def broke(self, error: Exception) -> None:
            raise RuntimeError("another bug")

    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        bad, good = Stubborn(engine), Pipe(engine)
        bad.raises = RuntimeError("a bug")
        os.write(bad.writing, b"x")
        await trio.sleep(0.01)
        os.write(good.writing, b"y")
        with trio.fail_after(5):
            await good.arrived.wait()
        bad.close()
        good.close()
        nursery.cancel_scope.cancel()


@drivers
@trio_test
async def test_tasks_and_timers_get_their_turn_under_endless_traffic(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        pipe = Pipe(engine)
        pipe.wanted_rounds = 1 << 60
        engine.again(pipe)
        began = time.monotonic()
        for _ in range(10):
            await trio.sleep(0.005)
        send, receive = trio.open_memory_channel[int](0)
        nursery.start_soon(send.send, 1)
        await receive.receive()
        await trio.to_thread.run_sync(time.sleep, 0.001)

        assert time.monotonic() - began < 2
        assert pipe.rounds > 10
        pipe.wanted_rounds = 0
        pipe.close()
        nursery.cancel_scope.cancel()


@drivers
@trio_test
async def test_timers_are_kept_while_nothing_happens(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        began = time.monotonic()
        await trio.sleep(0.05)

        assert 0.045 < time.monotonic() - began < 2
        nursery.cancel_scope.cancel()


@drivers
@pytest.mark.parametrize("threshold", [0.0, 0.01])
def test_a_jumping_clock_still_jumps(in_front: bool, threshold: float) -> None:
    async def main() -> None:
        engine = Engine(in_front=in_front)
        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            began = time.monotonic()
            await trio.sleep(1000)
            await trio.testing.wait_all_tasks_blocked(0.01)

            assert time.monotonic() - began < 2
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=threshold))


@trio_test
async def test_where_trios_insides_have_moved_the_engine_runs_as_a_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "trio._core._run")
    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        pipe = Pipe(engine)
        os.write(pipe.writing, b"hello")
        with trio.fail_after(5):
            await pipe.arrived.wait()
        pipe.close()
        nursery.cancel_scope.cancel()

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"no way into the wait of Trio {trio.__version__}: the engine runs as a task, slower")
    ]


@trio_test
async def test_where_trio_never_asks_the_engine_runs_as_a_task(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a Trio would that looks up once what it waits with."""
    monkeypatch.setattr(trio_wait.InFront, "enter", lambda self: None)
    monkeypatch.setattr(trio_wait, "PROOF_SECONDS", 0.01)
    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        assert not engine.is_in_front
        pipe = Pipe(engine)
        os.write(pipe.writing, b"hello")
        with trio.fail_after(5):
            await pipe.arrived.wait()
        pipe.close()
        nursery.cancel_scope.cancel()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.records[0].getMessage().startswith("no way into the wait of Trio ")


@trio_test
async def test_a_second_engine_leaves_the_place_to_the_first() -> None:
    async with trio.open_nursery() as nursery:
        engines = Engine(), Engine()
        for engine in engines:
            await nursery.start(engine.run)
        assert [engine.is_in_front for engine in engines] == [True, False]
        for engine in engines:
            pipe = Pipe(engine)
            os.write(pipe.writing, b"hello")
            with trio.fail_after(5):
                await pipe.arrived.wait()
            pipe.close()
        nursery.cancel_scope.cancel()


@trio_test
async def test_trio_waits_by_itself_again_when_the_engine_has_ended() -> None:
    await trio.testing.wait_all_tasks_blocked()  # Trio's own tasks wait as well
    before = waiting_to_read()
    async with trio.open_nursery() as nursery:
        await nursery.start(Engine().run)
        nursery.start_soon(wait_for_nothing)
        await trio.testing.wait_all_tasks_blocked()
        assert waiting_to_read() == before + 1, "asked of Trio's own"
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()

    assert waiting_to_read() == before


def waiting_to_read() -> int:
    statistics = trio.lowlevel.current_statistics().io_statistics
    return int(getattr(statistics, "tasks_waiting_read"))  # noqa: B009  typed by platform


async def wait_for_nothing() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        await trio.lowlevel.wait_readable(reading)
    finally:
        os.close(reading)
        os.close(writing)


class Saying:
    """A writer that wakes a task when it writes."""

    def __init__(self, engine: Engine) -> None:
        self.said = Once(engine)

    def write_out(self) -> None:
        self.said.set()

    def broke(self, error: Exception) -> None:
        raise AssertionError from error


@drivers
@trio_test(autojump=True)
async def test_a_task_woken_by_what_is_written_before_the_poll_runs_at_once(in_front: bool) -> None:
    engine = Engine(in_front=in_front)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        writer = Saying(engine)
        nursery.start_soon(writer.said.wait)
        await trio.testing.wait_all_tasks_blocked()
        began = time.monotonic()
        with trio.fail_after(60):
            engine.write_later(writer)
            await writer.said.wait()
        assert time.monotonic() - began < 5
        nursery.cancel_scope.cancel()


@trio_test
async def test_rounds_leave_time_for_the_network_and_keep_their_places() -> None:
    engine = Engine()
    order: list[int] = []

    class Slow(Pipe):
        def go_on(self) -> None:
            order.append(self.reading)
            time.sleep(engine_module.ROUNDS_SECONDS)

    slow = [Slow(engine) for _ in range(3)]
    for pipe in slow:
        engine.again(pipe)

    for turn in range(1, 4):
        engine.turn(0)
        assert len(order) == turn
    assert order == [pipe.reading for pipe in slow]
    for pipe in slow:
        pipe.close()


@trio_test
async def test_in_front_of_trio_the_engine_tells_of_work_between_polls() -> None:
    class Slow(Pipe):
        def ready(self, flags: int) -> None:
            time.sleep(0.03)
            self.arrived.set()

    engine = Engine()
    told: list[tuple[float, float]] = []
    assert not engine.tell_waits(lambda held, timeout: told.append((held, timeout)))  # it does not run yet
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        assert engine.tell_waits(lambda held, timeout: told.append((held, timeout)))
        await trio.sleep(0.002)
        time.sleep(0.03)  # noqa: ASYNC251  the work it is to tell of
        await trio.lowlevel.checkpoint()
        by_task = max(told)
        told.clear()
        pipe = Slow(engine)
        os.write(pipe.writing, b"x")
        await pipe.arrived.wait()
        pipe.close()
        await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert 0.03 <= by_task[0] < 2
    assert by_task[1] == 0  # a task was ready to run
    assert 0.03 <= max(told)[0] < 2, "a pump's work, too"
    assert any(timeout > 0 for _, timeout in told)


@trio_test
async def test_as_a_task_the_engine_knows_nothing_of_waits() -> None:
    engine = Engine(in_front=False)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        assert not engine.tell_waits(lambda held, timeout: None)
        nursery.cancel_scope.cancel()


@trio_test
async def test_the_engine_finds_its_way_into_this_trio() -> None:
    engine = Engine()
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        assert engine.is_in_front
        nursery.cancel_scope.cancel()
    assert not engine.is_in_front


@trio_test
async def test_once_may_be_waited_for_after_the_fact_and_cancelled_before() -> None:
    engine = Engine()
    once = Once(engine)
    with trio.move_on_after(0.001):
        await once.wait()
    once.set()
    once.set()
    await once.wait()
    assert once.is_set


def test_forgetting_twice_is_harmless() -> None:
    engine = Engine()
    pipe = Pipe(engine)
    pipe.close()
    engine.unregister(99_999)
    assert engine.registered == 0
