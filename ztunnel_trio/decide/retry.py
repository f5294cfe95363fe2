"""What to try after a connection could not be established; nothing of the application has been sent by then.

Three things may help: another address of the same endpoint, another endpoint of the service, and the same
endpoint with the time that was kept for others which turn out to be none. Endpoints that failed lately are
not the first choice of the next connections.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from ztunnel_trio.decide.known import Known
from ztunnel_trio.decide.route import Route
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.ending import AnsweredStatus, DeadlinePassed, NotProcessed
from ztunnel_trio.model.refusal import Reason, Refusal

UNAVAILABLE: Final = AnsweredStatus(503)  # the peer's proxy could not reach its application
MOST_ADDRESSES: Final = 4  # of one endpoint that one connection tries
FAILED_SECONDS: Final = 10.0  # how long an endpoint that failed is passed over; readiness takes as long
MOST_FAILED: Final = 256  # endpoints remembered for it

# Not being reachable; the peer's own refusals, of our identity or by policy, would be the same elsewhere.
_UNREACHABLE: Final = frozenset(
    {
        Reason.IO,
        Reason.HBONE_CONNECT_TIMEOUT,
        Reason.H2,
        Reason.H2_HANDSHAKE,
        Reason.NO_RESOLVED_ADDRESSES,
        Reason.NO_USABLE_RECORDS,
    }
)
_ELSEWHERE_ON_IT: Final = frozenset({Reason.IO, Reason.HBONE_CONNECT_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Tries:
    """What one connection has tried. `deadline` and all `now` are of one clock, in seconds.

    `left` counts other endpoints; addresses of one endpoint are one try.
    """

    deadline: float
    left: int
    endpoints: frozenset[str] = frozenset()
    addresses: frozenset[IPAddress] = frozenset()  # of the endpoint that is being tried

    def at(self, route: Route) -> "Tries":
        """These, and that this route was tried in vain."""
        uid = "" if route.workload is None else route.workload.uid
        endpoints = self.endpoints | {uid} if uid else self.endpoints
        return replace(self, endpoints=endpoints, addresses=self.addresses | {route.destination.ip})

    def elsewhere(self) -> "Tries":
        """These, once another endpoint is tried."""
        return replace(self, left=self.left - 1, addresses=frozenset())

    def share(self, others: int, now: float) -> float:
        """The seconds the present try gets, with so many others that may follow."""
        return max(self.deadline - now, 0.0) / (1 + max(others, 0))


@dataclass(frozen=True, slots=True)
class Address:
    """Try the same endpoint at another of its addresses, by this route."""

    route: Route


@dataclass(frozen=True, slots=True)
class Another:
    """Try another endpoint; if there is none, the same again where `or_same`."""

    or_same: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Nothing else helps."""


Next = Address | Another | GiveUp


def after(refusal: Refusal, route: Route, tries: Tries, known: Known, now: float) -> Next:
    """What to do after `route`, already among `tries`, was refused.

    A connection to an address that the client chose itself goes there or nowhere.
    """
    if route.service is None or now >= tries.deadline or not may_help_elsewhere(refusal):
        return GiveUp()
    others = other_addresses(route, tries, known)
    if refusal.cause == UNAVAILABLE:
        # Its proxy is there and its application refused. What listens on one family only listens on IPv4.
        others = [ip for ip in others if ip.version < route.destination.ip.version]
    elif refusal.reason not in _ELSEWHERE_ON_IT:
        others = []
    if others and len(tries.addresses) < MOST_ADDRESSES:
        return Address(at_address(route, others[0]))
    if tries.left <= 0:
        return GiveUp()
    return Another(or_same=is_timeout(refusal) or isinstance(refusal.cause, NotProcessed))


def may_help_elsewhere(refusal: Refusal) -> bool:
    """Whether another endpoint may do better than the one that failed so."""
    return refusal.cause == UNAVAILABLE or refusal.reason in _UNREACHABLE


def is_timeout(refusal: Refusal) -> bool:
    """Whether the time given ran out, which more of it may mend."""
    return refusal.reason is Reason.HBONE_CONNECT_TIMEOUT or isinstance(refusal.cause, DeadlinePassed)


def other_addresses(route: Route, tries: Tries, known: Known) -> list[IPAddress]:
    """The addresses of a route's endpoint that were not tried, those of the same family first."""
    workload = route.workload
    if workload is None:
        return []
    found = workload.addresses or known.hosts.get(workload.uid) or ()
    if len(found) < 2:  # nearly always
        return []
    family = route.destination.ip.version
    return sorted(
        (ip for ip in found if ip not in tries.addresses and ip != route.destination.ip),
        key=lambda ip: ip.version != family,
    )


def at_address(route: Route, ip: IPAddress) -> Route:
    """The same route to another address of its endpoint."""
    authority = route.authority
    if isinstance(authority, SocketAddress) and authority.ip == route.destination.ip:
        authority = SocketAddress(ip, authority.port)
    return replace(route, destination=SocketAddress(ip, route.destination.port), authority=authority)


class RecentFailures:
    """The endpoints of one workload's connections that failed lately, by uid; bounded."""

    __slots__ = ("_failed_at",)

    def __init__(self) -> None:
        self._failed_at: OrderedDict[str, float] = OrderedDict()

    def note(self, uid: str, now: float) -> None:
        """It could not be reached."""
        self._failed_at[uid] = now
        self._failed_at.move_to_end(uid)
        if len(self._failed_at) > MOST_FAILED:
            self._failed_at.popitem(last=False)

    def forgive(self, uid: str) -> None:
        """It was reached."""
        self._failed_at.pop(uid, None)

    def lately(self, now: float) -> frozenset[str]:
        """Those to be passed over while there are others."""
        failed_at = self._failed_at
        while failed_at:
            uid, at = next(iter(failed_at.items()))
            if now - at < FAILED_SECONDS:
                return frozenset(failed_at)
            del failed_at[uid]
        return frozenset()
