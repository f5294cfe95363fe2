import trio
from trio.testing import wait_all_tasks_blocked

from tests.fakes.trio_test import trio_test
from ztunnel_trio.supervise.watch import Watch


@trio_test
async def test_all_waiters_see_the_latest_value() -> None:
    watch = Watch("old")
    seen: list[tuple[int, str]] = []

    async def wait() -> None:
        seen.append(await watch.newer_than(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        watch.publish("between")
        watch.publish("new")

    assert seen == [(2, "new"), (2, "new")]


@trio_test
async def test_who_asks_late_does_not_wait() -> None:
    watch = Watch(0)
    watch.publish(7)

    assert await watch.newer_than(0) == (1, 7)


@trio_test
async def test_who_has_the_latest_waits() -> None:
    watch = Watch(0)

    with trio.move_on_after(0) as scope:
        await watch.newer_than(0)

    assert scope.cancelled_caught
