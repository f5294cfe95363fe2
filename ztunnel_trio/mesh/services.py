"""The services of the mesh: by key, hostname, VIP and range.

Theory of operation: every service anybody mentions has a `ServiceEndpoints`, also before it is known.
Services that share an address or hostname lie in one list, in the order of their names; which of them a
client gets is a fixed rule (`best`), whatever came first.
"""

from bisect import insort
from collections.abc import Hashable, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from itertools import count
from typing import Final, TypeVar

from ztunnel_trio.mesh.clashes import Claim, Clashes
from ztunnel_trio.mesh.endpoints import NOTHING_LISTED, Endpoints, ServiceEndpoints, endpoint_ports
from ztunnel_trio.mesh.keys import AddressKey, address_key
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import Endpoint, Service

K = TypeVar("K", bound=Hashable)

WILDCARD: Final = "*."
_VERSIONS: Final = 1 << 32  # of one service's endpoints, before another service's begin

Ranges = dict[tuple[int, int], dict[int, list[Service]]]
"""By IP version and prefix length, then by the network's number."""


class Services:
    """The store."""

    __slots__ = ("_by_cidr", "_by_host", "_by_key", "_by_vip", "_versions", "_wildcards", "clashes")

    def __init__(self) -> None:
        self.clashes = Clashes(self._claimants)
        self._by_key: dict[NamespacedHostname, ServiceEndpoints] = {}
        self._by_host: dict[str, list[Service]] = {}
        self._by_vip: dict[str, dict[AddressKey, list[Service]]] = {}
        self._by_cidr: dict[str, Ranges] = {}
        self._wildcards: dict[int, int] = {}  # how many wildcard hostnames have how many labels
        self._versions = count(0, _VERSIONS)

    # change

    def mentioned(self, key: NamespacedHostname) -> ServiceEndpoints:
        """The endpoints of a service, made if nobody mentioned it before."""
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = ServiceEndpoints(key, next(self._versions))
        return found

    def forget_unmentioned(self, one: ServiceEndpoints) -> None:
        """Forget a service that nobody mentions any more."""
        if one.is_unmentioned:
            self._by_key.pop(one.key, None)

    def put(self, service: Service, listed: Mapping[str, Endpoint]) -> None:
        """Make a service known or replace it; `listed` are endpoints a local file gives it."""
        one = self.mentioned(service.key)
        if one.service is not None:
            self._unindex(one.service)
        one.set_service(
            service,
            {uid: endpoint_ports(each.ports, each.health) for uid, each in listed.items()}
            if listed
            else NOTHING_LISTED,
        )
        self._index(service)

    def remove(self, key: NamespacedHostname) -> bool:
        """Forget a service, but not who names it; False if it was not known."""
        one = self._by_key.get(key)
        if one is None or one.service is None:
            return False
        self._unindex(one.service)
        one.set_service(None, NOTHING_LISTED)
        self.forget_unmentioned(one)
        return True

    def _index(self, service: Service) -> None:
        there = self._by_host.setdefault(service.hostname, [])
        insort(there, service, key=service_name)
        if len(there) == 1 and service.hostname.startswith(WILDCARD):
            labels = service.hostname.count(".")
            self._wildcards[labels] = self._wildcards.get(labels, 0) + 1
        for vip in dict.fromkeys(service.vips):
            number = address_key(vip.ip)
            claims = self._by_vip.setdefault(vip.network, {}).setdefault(number, [])
            insort(claims, service, key=service_name)
            if len(claims) > 1:
                self.clashes.touch((vip.network, number))
        for vip_range in dict.fromkeys(service.cidr_vips):
            length, number = _length(vip_range.cidr), int(vip_range.cidr.network_address)
            ranges = self._by_cidr.setdefault(vip_range.network, {}).setdefault(length, {})
            claims = ranges.setdefault(number, [])
            insort(claims, service, key=service_name)
            if len(claims) > 1:
                self.clashes.touch((vip_range.network, (*length, number)))

    def _unindex(self, service: Service) -> None:
        if not _take(self._by_host, service.hostname, service) and service.hostname.startswith(WILDCARD):
            labels = service.hostname.count(".")
            self._wildcards[labels] -= 1
            if not self._wildcards[labels]:
                del self._wildcards[labels]
        for vip in dict.fromkeys(service.vips):
            keys, number = self._by_vip[vip.network], address_key(vip.ip)
            if _take(keys, number, service):
                self.clashes.touch((vip.network, number))
            elif not keys:
                del self._by_vip[vip.network]
        for vip_range in dict.fromkeys(service.cidr_vips):
            length, number = _length(vip_range.cidr), int(vip_range.cidr.network_address)
            lengths = self._by_cidr[vip_range.network]
            ranges = lengths[length]
            if _take(ranges, number, service):
                self.clashes.touch((vip_range.network, (*length, number)))
            elif not ranges:
                del lengths[length]
                if not lengths:
                    del self._by_cidr[vip_range.network]

    # lookup

    def get(self, key: NamespacedHostname) -> Service | None:
        """The service of that very key."""
        one = self._by_key.get(key)
        return None if one is None else one.service

    def known(self, key: NamespacedHostname) -> ServiceEndpoints | None:
        """The endpoints of a known service, as they are kept."""
        one = self._by_key.get(key)
        return None if one is None or one.service is None else one

    def at(self, address: NetworkAddress, client_namespace: str | None) -> Service | None:
        """The best service of an address: one with that very VIP, else one with a range around it."""
        keys = self._by_vip.get(address.network)
        exact = () if keys is None else keys.get(address_key(address.ip), ())
        found = best(exact, client_namespace) if exact else None
        if found is None and address.network in self._by_cidr:
            found = self._around(address, client_namespace)
        return found

    def _around(self, address: NetworkAddress, client_namespace: str | None) -> Service | None:
        """The best range: of the client's namespace, then the narrowest, then as `best` has it."""
        winner: Service | None = None
        score = (False, -1, False)
        number, bits = int(address.ip), address.ip.max_prefixlen
        for (version, length), ranges in self._by_cidr[address.network].items():
            if version != address.ip.version:
                continue
            found = best(ranges.get(number >> (bits - length) << (bits - length), ()), client_namespace)
            if found is not None:
                own = client_namespace is not None and found.namespace == client_namespace
                if (own, length, found.canonical) > score:
                    winner, score = found, (own, length, found.canonical)
        return winner

    def named(
        self, hostname: str, client_namespace: str | None, preferred_namespace: str | None = None
    ) -> Service | None:
        """The best service of a hostname."""
        return best(self._by_host.get(hostname, ()), client_namespace, preferred_namespace)

    def all_named(self, hostname: str) -> tuple[Service, ...]:
        """Every service of a hostname, by name."""
        found = self._by_host.get(hostname)
        return () if found is None else tuple(found)

    def wildcard_labels(self) -> tuple[int, ...]:
        """How many labels the known wildcard hostnames have behind their `*`, most first."""
        return tuple(sorted(self._wildcards, reverse=True))

    def __iter__(self) -> Iterator[Service]:
        for services in self._by_host.values():
            yield from services

    def unknown(self) -> Iterator[tuple[NamespacedHostname, Endpoints]]:
        """The services that workloads name and nobody has described, with who names them."""
        return (
            (one.key, Endpoints(one)) for one in self._by_key.values() if one.service is None and one.named_by
        )

    def _claimants(self, claim: Claim) -> tuple[str, ...]:
        """Who claims an address, by name; who gets it first."""
        network, key = claim
        if isinstance(key, tuple):
            version, length, number = key
            services = self._by_cidr.get(network, {}).get((version, length), {}).get(number, [])
        else:
            services = self._by_vip.get(network, {}).get(key, [])
        first = best(services, None)
        names = [service_name(each) for each in services if each is not first]
        return tuple(names) if first is None else (service_name(first), *names)


def best(
    candidates: Iterable[Service], client_namespace: str | None, preferred_namespace: str | None = None
) -> Service | None:
    """Choose among services that share an address or hostname, given in the order of their names.

    Not those the client may not see. Of the others one of the client's namespace, else a canonical one, else
    one of the preferred namespace; of several the one whose `namespace/hostname` is smallest (decision 0011).
    """
    found: Service | None = None
    score = (False, False, False)
    for each in candidates:
        if each.is_visible_to(client_namespace):
            namespace = each.namespace
            own = (
                client_namespace is not None and namespace == client_namespace,
                each.canonical,
                preferred_namespace is not None and namespace == preferred_namespace,
            )
            if found is None or own > score:
                found, score = each, own
    return found


def service_name(service: Service) -> str:
    """`namespace/hostname`: what services are ordered by."""
    return f"{service.namespace}/{service.hostname}"


def _length(cidr: IPv4Network | IPv6Network) -> tuple[int, int]:
    return cidr.version, cidr.prefixlen


def _take(index: dict[K, list[Service]], key: K, service: Service) -> bool:
    """Take a service out of a list of an index, and the list when it is empty; whether anybody is left."""
    there = index[key]
    there[:] = [each for each in there if each is not service]
    if there:
        return True
    del index[key]
    return False
