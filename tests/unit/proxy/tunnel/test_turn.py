import time

from ztunnel_trio.net.engine import SHARE_SECONDS
from ztunnel_trio.proxy.tunnel.turn import EVENTS, Turn


def test_a_turn_is_over_after_so_many_events() -> None:
    turn = Turn()
    turn.spend(EVENTS - 1)
    was_over = turn.is_over
    turn.spend(1)

    assert (was_over, turn.is_over) == (False, True)


def test_a_turn_is_over_after_so_much_work() -> None:
    turn = Turn()
    began = time.thread_time()
    while time.thread_time() - began < SHARE_SECONDS:
        pass

    assert turn.is_over
