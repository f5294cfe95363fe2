"""What a peer may send of that which carries nothing, and what it may not."""

from collections.abc import Callable

import pytest

from tests.fakes.http2 import CONNECT, FrameFactory, Peer, data_frame, feed, joined
from ztunnel_trio.wire.http2.budgets import ALLOWANCES, Allowance, Budgets, Excess, OverBudget
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.events import DataReceived
from ztunnel_trio.wire.http2.frames import GOAWAY
from ztunnel_trio.wire.http2.settings import Http2Settings

make = FrameFactory()

FLOODS = [
    (Excess.SETTINGS, make.settings()),
    (Excess.ACKNOWLEDGEMENTS, make.settings(ack=True)),
    (Excess.ACKNOWLEDGEMENTS, make.ping(ack=True)),
    (Excess.PING, make.ping()),
    (Excess.WINDOW_UPDATES, make.window_update(0, 1)),
    (Excess.WINDOW_UPDATES, make.window_update(1, 1)),
    (Excess.IDLE_FRAMES, make.priority(1)),
    (Excess.IDLE_FRAMES, make.raw(99, 0, 0)),
    (Excess.EMPTY_DATA, make.data(1)),
    (Excess.EMPTY_DATA, make.padded(1, b"", 0)),
    (Excess.EMPTY_DATA, make.padded(1, b"", 7)),
    (Excess.GOAWAYS, make.goaway(0)),
]
IDS = [f"{kind.value}{number}" for number, (kind, _) in enumerate(FLOODS)]


@pytest.mark.parametrize(("kind", "frame"), FLOODS, ids=IDS)
def test_a_flood_of_what_carries_nothing_is_cut(kind: Excess, frame: bytes) -> None:
    peer = Peer()
    peer.open()

    with pytest.raises(OverBudget) as caught:
        peer.say(frame * 5000)
    assert (caught.value.kind, caught.value.code) == (kind, ErrorCode.ENHANCE_YOUR_CALM)
    assert peer.heard()[-1].kind == GOAWAY


@pytest.mark.parametrize(("kind", "frame"), FLOODS, ids=IDS)
def test_a_quarter_of_a_budget_each_second_is_nobodys_business(kind: Excess, frame: bytes) -> None:
    peer = Peer()
    peer.open()
    allowance = ALLOWANCES[kind]
    for second in range(1, 60):
        peer.now = float(second)
        peer.say(frame * max(1, allowance.per_second // 4))
        peer.heard()

    assert peer.core.budgets.peaks()[kind] <= 0.25


def test_small_data_is_never_cut() -> None:
    peer = Peer()
    peer.open()
    for _ in range(100):
        for event in peer.say(make.data(1, b"x") * 1000):
            assert isinstance(event, DataReceived)
            peer.core.credit(event.stream_id, 1)

    assert set(peer.core.budgets.peaks()) == {Excess.SETTINGS}  # those of its greeting


@pytest.mark.parametrize("frames", [make.window_update(1, 1) + make.window_update(0, 1), make.ping()])
def test_what_answers_our_data_is_free(frames: bytes) -> None:
    peer = Peer()
    peer.open()
    peer.say(make.window_update(1, 1 << 20) + make.window_update(0, 1 << 20))
    for _ in range(20_000):
        data_frame(peer.core, b"x")
        peer.say(frames)
        peer.heard()

    assert max(peer.core.budgets.peaks().values()) < 0.25


def test_acknowledgements_of_what_we_asked_are_free() -> None:
    client, _ = joined()
    for _ in range(1000):
        client.ping(b"12345678")
        feed(client, make.ping(b"12345678", ack=True))

    assert Excess.ACKNOWLEDGEMENTS not in client.budgets.peaks()


def test_informational_answers_without_end_are_cut() -> None:
    client, _ = joined()
    client.open_stream("h:1", [])

    with pytest.raises(OverBudget) as caught:
        feed(client, make.raw(1, 4, 1, b"\x08\x03103") * 1000)
    assert caught.value.kind is Excess.INFORMATIONAL_ANSWERS


def by_the_peer(peer: Peer, stream_id: int) -> None:
    peer.headers(stream_id, CONNECT)
    peer.say(make.reset(stream_id))


def by_a_fault(peer: Peer, stream_id: int) -> None:
    peer.headers(stream_id, CONNECT)
    peer.say(make.window_update(stream_id, 0))


def by_us(peer: Peer, stream_id: int) -> None:
    peer.headers(stream_id, CONNECT)
    peer.core.reset(stream_id, ErrorCode.REFUSED_STREAM)
    peer.say(make.window_update(stream_id, 0))


@pytest.mark.parametrize("reset", [by_the_peer, by_a_fault])
def test_streams_reset_before_their_answer_are_limited(reset: Callable[[Peer, int], None]) -> None:
    peer = Peer()
    burst = ALLOWANCES[Excess.UNANSWERED_RESETS].burst
    for number in range(burst):
        reset(peer, 2 * number + 1)
        peer.heard()

    with pytest.raises(OverBudget) as caught:
        reset(peer, 2 * burst + 1)
    assert caught.value.kind is Excess.UNANSWERED_RESETS


def test_streams_over_the_limit_are_refused_for_a_while() -> None:
    make = FrameFactory()
    peer = Peer(Http2Settings(is_client=False, max_streams=1))
    peer.open(1)
    requests = b"".join([make.headers(stream_id, CONNECT) for stream_id in range(3, 3000, 2)])

    with pytest.raises(OverBudget) as caught:
        peer.say(requests)
    assert caught.value.kind is Excess.UNANSWERED_RESETS


def test_our_own_resets_before_an_answer_count_with_the_next_of_the_peers() -> None:
    peer = Peer()
    burst = ALLOWANCES[Excess.UNANSWERED_RESETS].burst
    for number in range(burst):
        by_us(peer, 2 * number + 1)
        peer.heard()

    with pytest.raises(OverBudget):
        by_the_peer(peer, 2 * burst + 1)


def test_streams_reset_after_their_answer_are_not_counted() -> None:
    peer = Peer()
    for stream_id in range(1, 4001, 2):
        peer.open(stream_id)
        peer.say(make.reset(stream_id))

    assert peer.core.open_streams == 0


def test_stream_errors_are_limited() -> None:
    peer = Peer()
    burst = ALLOWANCES[Excess.STREAM_ERRORS].burst
    for number in range(burst):
        peer.open(2 * number + 1)
        peer.say(make.window_update(2 * number + 1, 0))
        peer.heard()
    peer.open(2 * burst + 1)

    with pytest.raises(OverBudget) as caught:
        peer.say(make.window_update(2 * burst + 1, 0))
    assert caught.value.kind is Excess.STREAM_ERRORS


def test_a_budget_is_refilled_by_the_second() -> None:
    budgets = Budgets({Excess.PING: Allowance(burst=2, per_second=1)})
    budgets.spend(Excess.PING)
    budgets.spend(Excess.PING)
    with pytest.raises(OverBudget):
        budgets.spend(Excess.PING)
    budgets.now = 2.0
    budgets.spend(Excess.PING)

    assert budgets.peaks() == {Excess.PING: 1.5}


def test_every_kind_is_counted_against_something() -> None:
    limits = {Excess.HEADER_BLOCK, Excess.UNREAD_ANSWERS}  # limits of size, not of rate

    assert set(Excess) - limits == set(ALLOWANCES)
