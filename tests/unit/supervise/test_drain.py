import math

import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.supervise.drain import Drain


@trio_test(autojump=True)
async def test_the_first_request_gives_reason_and_deadline() -> None:
    drain = Drain(5)
    assert not drain.is_requested
    assert drain.deadline == math.inf

    drain.request("SIGTERM")
    asked = trio.current_time()
    await trio.sleep(2)
    drain.request("SIGINT")

    assert drain.is_requested
    assert drain.reason == "SIGTERM"
    assert drain.deadline == asked + 5
