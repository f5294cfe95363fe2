from ipaddress import IPv4Address, IPv6Address

import pytest
import trio

from tests.fakes.trio_test import trio_test
from ztunnel_trio.admin.places import STUCK_SECONDS, ConnectionPlaces, client_of
from ztunnel_trio.model.address import IPAddress

FIRST, SECOND, THIRD = (IPv4Address(f"10.0.0.{number}") for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (FIRST, FIRST, True),
        (FIRST, SECOND, False),
        (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::ffff:1:2:3"), True),
        (IPv6Address("2001:db8::1"), IPv6Address("2001:db8:0:1::1"), False),
        (IPv6Address("::ffff:10.0.0.1"), FIRST, True),
        (IPv6Address("::ffff:10.0.0.1"), IPv6Address("::ffff:10.0.0.2"), False),
    ],
)
def test_a_client_is_an_address_or_a_network_of_64_bits(one: IPAddress, other: IPAddress, same: bool) -> None:
    assert (client_of(one) == client_of(other)) is same


@trio_test
async def test_the_client_with_the_most_places_gives_up_its_oldest() -> None:
    places = ConnectionPlaces(3)
    other = await places.take(SECOND)
    greedy = [await places.take(FIRST) for _ in range(2)]

    await places.take(THIRD)

    assert [place.scope.cancel_called for place in (other, *greedy)] == [False, True, False]
    assert len(places) == 3


@trio_test(autojump=True)
async def test_a_reader_that_is_stuck_gives_way_after_a_second() -> None:
    places = ConnectionPlaces(1)
    reader = await places.take(FIRST)
    reader.wait_for_reader()
    began = trio.current_time()

    await places.take(SECOND)

    assert reader.scope.cancel_called
    assert STUCK_SECONDS <= trio.current_time() - began < 1.5 * STUCK_SECONDS


@trio_test(autojump=True)
async def test_a_place_that_is_left_is_free_at_once() -> None:
    places = ConnectionPlaces(1)
    busy = await places.take(FIRST)
    busy.work()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(places.take, SECOND)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        places.leave(busy)
        places.leave(busy)

    assert trio.current_time() == began
    assert len(places) == 1
    assert not busy.scope.cancel_called
