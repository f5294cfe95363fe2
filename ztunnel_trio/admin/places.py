"""Who may be connected to a port of operators, and who gives way when all places are taken.

Theory of operation. A newcomer always gets a place while somebody only waits: for a request, or for a reader
that has taken nothing for a second. Of those the client with the most places gives one up, its oldest. So
slow clients, however many, cost each other their places and nobody else's. A client is an IPv4 address or an
IPv6 network of 64 bits, which one machine may own whole (RFC 4291 2.5.4).
"""

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from math import inf
from typing import Final

import trio

from ztunnel_trio.model.address import IPAddress

STUCK_SECONDS: Final = 1.0
NETWORK_BITS: Final = 64

Client = IPAddress | int


def client_of(ip: IPAddress) -> Client:
    """What counts as one client: the address, or of IPv6 its network's bits."""
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is None:
        return int(ip) >> (128 - NETWORK_BITS)
    return ip.ipv4_mapped if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None else ip


@dataclass(slots=True, eq=False)
class ConnectionPlace:
    """One connection's place. `scope` is around all that is done for it."""

    client: Client
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    gives_way_at: float = -inf  # from then on it only waits, in Trio's time

    def wait_for_request(self) -> None:
        """It waits for the client to say something."""
        self.gives_way_at = -inf

    def wait_for_reader(self) -> None:
        """It waits for the client to take something, and may do so for a little."""
        self.gives_way_at = trio.current_time() + STUCK_SECONDS

    def work(self) -> None:
        """It does what it was asked to."""
        self.gives_way_at = inf


class ConnectionPlaces:
    """A number of places, the oldest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: dict[ConnectionPlace, None] = {}
        self._freed = trio.Event()

    def __len__(self) -> int:
        return len(self._taken)

    async def take(self, ip: IPAddress) -> ConnectionPlace:
        """A place for a newcomer, when there is one or somebody gives way."""
        place = ConnectionPlace(client_of(ip))
        while len(self._taken) >= self._most and not self._one_gives_way():
            with trio.move_on_after(STUCK_SECONDS / 4):
                await self._freed.wait()
        self._taken[place] = None
        return place

    def leave(self, place: ConnectionPlace) -> None:
        """The connection has ended. Doing it twice changes nothing."""
        if self._taken.pop(place, place) is None:
            freed, self._freed = self._freed, trio.Event()
            freed.set()

    def _one_gives_way(self) -> bool:
        now = trio.current_time()
        waiting = [place for place in self._taken if place.gives_way_at <= now]
        if not waiting:
            return False
        holds = Counter(place.client for place in self._taken)
        chosen = max(waiting, key=lambda place: holds[place.client])  # of equals the oldest
        chosen.scope.cancel(reason="gave way to another client")
        self.leave(chosen)
        return True
