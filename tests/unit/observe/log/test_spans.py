import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.observe.log import span
from ztunnel_trio.observe.log.spans import current_spans


@trio_test
async def test_child_tasks_inherit_the_span() -> None:
    seen: list[str] = []

    async def child() -> None:
        seen.extend(inner.name for inner in current_spans.get())

    async with trio.open_nursery() as nursery:
        with span("outbound", id=1):
            nursery.start_soon(child)

    assert seen == ["outbound"]
