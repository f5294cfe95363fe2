"""The one timer over a tunnel's unanswered requests."""

import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.trio_test import trio_test
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.proxy.tunnel.answer_deadlines import AnswerDeadlines


async def told(doubts: AnswerDeadlines, engine: Engine, after: float, at: list[float]) -> None:
    await trio.sleep(after)
    answer = Once(engine)
    doubts.add(answer, trio.current_time())
    await answer.wait()
    at.append(trio.current_time())


@trio_test(autojump=True)
async def test_each_is_told_when_its_own_time_is_over() -> None:
    engine, doubts, at = Engine(), AnswerDeadlines(1.0), list[float]()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(doubts.watch)
        async with trio.open_nursery() as waiting:
            for after in (0.0, 0.25, 0.25, 3.0):
                waiting.start_soon(told, doubts, engine, after, at)
        nursery.cancel_scope.cancel()
    assert [round(one - began, 3) for one in at] == [1.0, 1.25, 1.25, 4.0]


@trio_test(autojump=True)
async def test_an_answer_in_time_leaves_the_others_their_time() -> None:
    engine, doubts, at = Engine(), AnswerDeadlines(1.0), list[float]()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(doubts.watch)
        await wait_all_tasks_blocked()
        soon = Once(engine)
        doubts.add(soon, trio.current_time())
        soon.set()
        async with trio.open_nursery() as waiting:
            waiting.start_soon(told, doubts, engine, 0.5, at)
        nursery.cancel_scope.cancel()
    assert [round(one - began, 3) for one in at] == [1.5]


@trio_test(autojump=True)
async def test_who_came_before_the_watch_is_watched_too() -> None:
    engine, doubts, at = Engine(), AnswerDeadlines(1.0), list[float]()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(told, doubts, engine, 0.0, at)
        await wait_all_tasks_blocked()
        with trio.move_on_after(2.0):
            await doubts.watch()
    assert [round(one - began, 3) for one in at] == [1.0]
