"""The pool's choice, step by step, without a tunnel or a clock."""

from dataclasses import dataclass, replace
from ipaddress import ip_address

from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.proxy.pool_choice import Choices, Dial, PoolKey, PoolSettings, Use, Wait

KEY = PoolKey(
    SpiffeId("cluster.local", "ns", "source"),
    (SpiffeId("cluster.local", "ns", "server"),),
    SocketAddress(ip_address("127.0.0.3"), 15008),
    ip_address("127.0.0.2"),
)
OTHER = replace(KEY, client=ip_address("127.0.0.4"))


@dataclass(eq=False)
class Tunnel:
    """As much of a tunnel as a choice looks at."""

    has_room: bool = True
    active_streams: int = 0
    peer_max_streams: int = 100


def choices(**settings: float) -> Choices[Tunnel]:
    return Choices(replace(PoolSettings(), **settings))  # type: ignore[arg-type]


def pooled(book: Choices[Tunnel], key: PoolKey = KEY, now: float = 0.0) -> Tunnel:
    """Dial and pool a tunnel."""
    tunnel = Tunnel()
    assert isinstance(book.choose(key, now), Dial)
    book.dialled(key, tunnel, now)
    book.ended(key, None)
    return tunnel


def test_the_first_dials_and_who_comes_meanwhile_waits_for_the_same() -> None:
    book = choices()
    first, second = book.choose(KEY, 0), book.choose(KEY, 0)

    assert isinstance(first, Dial)
    assert isinstance(second, Wait)
    assert second.dialling is first.dialling
    assert isinstance(book.choose(OTHER, 0), Dial)


def test_who_waits_is_told_what_the_dial_failed_with_and_the_next_dials_again() -> None:
    book = choices()
    waiting = book.choose(KEY, 0), book.choose(KEY, 0)
    failure = Refused(Refusal(Reason.IO))
    book.ended(KEY, failure)

    assert waiting[1].dialling.failure is failure  # type: ignore[union-attr]
    assert waiting[1].dialling.done.is_set()  # type: ignore[union-attr]
    assert isinstance(book.choose(KEY, 0), Dial)


def test_a_tunnel_with_room_is_used_until_its_last_stream_and_leaves_with_that() -> None:
    book = choices(max_streams=2)
    tunnel = pooled(book)
    tunnel.active_streams = 1

    assert book.choose(KEY, 1) == Use(tunnel, is_last=True)
    assert not book.has(KEY, tunnel)
    assert isinstance(book.choose(KEY, 1), Dial)


def test_the_peers_limit_counts_too() -> None:
    book = choices()
    tunnel = pooled(book)
    tunnel.peer_max_streams = 1

    assert book.choose(KEY, 1) == Use(tunnel, is_last=True)


def test_a_tunnel_without_room_leaves_and_is_to_be_released() -> None:
    book = choices()
    tunnel = pooled(book)
    tunnel.has_room = False
    choice = book.choose(KEY, 1)

    assert isinstance(choice, Dial)
    assert choice.left is tunnel


def test_a_tunnel_for_one_stream_only_is_never_pooled() -> None:
    book = choices(max_streams=1)
    book.choose(KEY, 0)

    assert book.dialled(KEY, Tunnel(), 0) == (True, [])
    assert not book.pooled


def test_the_tunnels_used_longest_ago_leave_when_there_are_too_many() -> None:
    book = choices(max_idle_tunnels=2)
    first, second = pooled(book, KEY), pooled(book, OTHER)
    assert book.choose(KEY, 5) == Use(first, is_last=False)
    third = replace(KEY, client=ip_address("127.0.0.5"))
    book.choose(third, 6)

    assert book.dialled(third, Tunnel(), 6) == (False, [second])


def test_idle_time_counts_from_the_last_use_and_only_while_pooled() -> None:
    book = choices(idle_seconds=10)
    tunnel = pooled(book, now=100)
    assert book.idle_left(KEY, tunnel, 103) == 7
    book.choose(KEY, 105)
    assert book.idle_left(KEY, tunnel, 105) == 10
    book.drop(KEY, tunnel)
    book.drop(KEY, tunnel)
    assert book.idle_left(KEY, tunnel, 105) is None
