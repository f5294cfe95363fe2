"""Addresses that more than one claims: which, who gets them, and what is told of it once.

Several services may be given one VIP, several workloads one address. Who gets it follows from a fixed rule
(`services.best`, `Workloads.at`), the same on every node; but as somebody is not reached then, each clash is
told once, and told again only when one more joins it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from ztunnel_trio.mesh.keys import AddressKey

RangeKey = tuple[int, int, int]
"""IP version, prefix length and number of a network."""

Claim = tuple[str, AddressKey | RangeKey]
"""What is claimed: an address or a range of addresses of a network."""


@dataclass(frozen=True, slots=True)
class Clash:
    """One address, as `network/address`, and who claims it: who gets it comes first.

    A service may go before the first for clients of its own namespace.
    """

    address: str
    claimants: tuple[str, ...]

    def __str__(self) -> str:
        first, *others = self.claimants
        return f"{self.address} is claimed by {first}, which gets it, and by {', '.join(others)}"


@dataclass(slots=True, eq=False)
class Clashes:
    """The clashes of one store. `claimants` says who claims an address now, who gets it first."""

    claimants: Callable[[Claim], tuple[str, ...]]
    _known: dict[Claim, frozenset[str]] = field(default_factory=dict)
    _touched: dict[Claim, None] = field(default_factory=dict)

    def touch(self, claim: Claim) -> None:
        """The claimants of an address with several, now or before, have changed."""
        self._touched[claim] = None

    def news(self) -> list[Clash]:
        """The clashes that came, or grew, since the last look."""
        if not self._touched:
            return []
        found = []
        for claim in self._touched:
            claimants = self.claimants(claim)
            if len(claimants) < 2:
                self._known.pop(claim, None)
                continue
            known = self._known.get(claim, frozenset())
            self._known[claim] = frozenset(claimants)
            if not known.issuperset(claimants):
                found.append(Clash(_text(claim), claimants))
        self._touched.clear()
        return found

    def __iter__(self) -> Iterator[Clash]:
        return (Clash(_text(claim), self.claimants(claim)) for claim in self._known)


def _text(claim: Claim) -> str:
    network, key = claim
    match key:
        case int():
            return f"{network}/{IPv4Address(key)}"
        case bytes():
            return f"{network}/{IPv6Address(key)}"
        case (4, length, number):
            return f"{network}/{IPv4Network((number, length))}"
        case (_, length, number):
            return f"{network}/{IPv6Network((number, length))}"
