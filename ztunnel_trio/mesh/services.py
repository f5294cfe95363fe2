"""The services of the mesh, and the endpoint sets of them and of services not known yet.

Theory of operation: every service anybody mentions has a `Backing`: its endpoints, and the service itself
once it is known. Workloads usually come first; then the backing is *staged* and keeps endpoints of any
health until its service says which it takes. An endpoint is a uid and a shared `Shape`; a template of
workloads holds the backings of its services, so that adding a workload is one dictionary entry a service.

Unhealthy endpoints a service does not take are dropped, as ztunnel drops them, but only at the end of the
response: until then a later slice may bring a version of the service that takes them.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from ztunnel_trio.mesh.keys import AddressKey, address_key
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import Endpoint, Service
from ztunnel_trio.model.workload import Health

SHAPES_KEPT: Final = 4096

K = TypeVar("K", bound=Hashable)


class Shape(NamedTuple):
    """What endpoints have in common: service ports to target ports, and health."""

    ports: Mapping[int, int]
    health: Health

    @staticmethod
    def of(ports: Mapping[int, int], health: Health) -> "Shape":
        """One copy of equal shapes."""
        return _shape(tuple(ports.items()), health)


@lru_cache(SHAPES_KEPT)
def _shape(ports: tuple[tuple[int, int], ...], health: Health) -> Shape:
    return Shape(MappingProxyType(dict(ports)), health)


@dataclass(slots=True, eq=False)
class Backing:
    """What stands behind a service. `service` None: it is not known yet, the endpoints are staged.

    `templates` counts the templates of workloads that name it. `given` are the uids a local file lists as
    endpoints by itself. `memo` is scratch space for what is computed from service and endpoints; it is
    emptied whenever one of them changes.
    """

    key: NamespacedHostname
    service: Service | None = None
    takes_unhealthy: bool = True
    endpoints: dict[str, Shape] = field(default_factory=dict)
    templates: int = 0
    given: frozenset[str] = frozenset()
    memo: dict[Hashable, object] | None = None

    def set_service(self, service: Service | None) -> None:
        """Make the service known, or forget it."""
        self.service = service
        self.takes_unhealthy = service is None or service.allows_unhealthy
        self.memo = None


class Endpoints(Mapping[str, Endpoint]):
    """The endpoints of a service by uid, as they are at each look."""

    __slots__ = ("_backing",)

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def __getitem__(self, uid: str) -> Endpoint:
        shape = self._backing.endpoints[uid]
        return Endpoint(uid, shape.ports, shape.health)

    def __contains__(self, uid: object) -> bool:
        return uid in self._backing.endpoints

    def __iter__(self) -> Iterator[str]:
        return iter(self._backing.endpoints)

    def __len__(self) -> int:
        return len(self._backing.endpoints)


Ranges = dict[tuple[int, int], dict[int, list[Service]]]
"""By IP version and prefix length, then by the network's number."""


@dataclass(slots=True, eq=False)
class Services:
    """The store. Services that share an address or hostname are listed in the order they were last sent."""

    _backings: dict[NamespacedHostname, Backing] = field(default_factory=dict)
    _by_host: dict[str, list[Service]] = field(default_factory=dict)
    _by_vip: dict[str, dict[AddressKey, list[Service]]] = field(default_factory=dict)
    _by_cidr: dict[str, Ranges] = field(default_factory=dict)
    _passed_over: dict[NamespacedHostname, dict[str, Shape]] = field(default_factory=dict)

    # change

    def backing(self, key: NamespacedHostname) -> Backing:
        """The backing of a service, made if nobody mentioned it before."""
        backing = self._backings.get(key)
        if backing is None:
            backing = self._backings[key] = Backing(key)
        return backing

    def forsake(self, backing: Backing) -> None:
        """Forget a backing that nobody mentions any more."""
        if backing.service is None and not backing.endpoints and not backing.templates:
            self._backings.pop(backing.key, None)

    def put(self, service: Service, given: Mapping[str, Endpoint]) -> None:
        """Make a service known or replace it; its endpoints stay, if it takes their health."""
        backing = self.backing(service.key)
        if backing.service is not None:
            self._unindex(backing.service)
        if given or backing.given:
            self._put_given(backing, given)
        backing.set_service(service)
        passed_over = self._passed_over.pop(backing.key, None) if self._passed_over else None
        if not backing.takes_unhealthy:
            for uid in [uid for uid, one in backing.endpoints.items() if one.health is not Health.HEALTHY]:
                del backing.endpoints[uid]
        elif passed_over is not None:
            backing.endpoints.update(passed_over)
        self._index(service)

    def _put_given(self, backing: Backing, given: Mapping[str, Endpoint]) -> None:
        """Replace what a local file lists as endpoints; what workloads say of themselves goes before it."""
        left = {uid: shape for uid, shape in backing.endpoints.items() if uid not in backing.given}
        backing.endpoints = {uid: Shape.of(one.ports, one.health) for uid, one in given.items()}
        backing.endpoints.update(left)
        backing.given = frozenset(given)

    def remove(self, key: NamespacedHostname) -> bool:
        """Forget a service and its endpoints; False if it was not known."""
        backing = self._backings.get(key)
        if backing is None:
            return False
        service = backing.service
        if service is not None:
            self._unindex(service)
        backing.set_service(None)
        backing.endpoints = {}
        backing.given = frozenset()
        self.forsake(backing)
        return service is not None

    def pass_over(self, backing: Backing, uid: str, shape: Shape) -> None:
        """Remember an endpoint the service does not take, until the response ends."""
        self._passed_over.setdefault(backing.key, {})[uid] = shape

    def withdraw(self, backing: Backing, uid: str) -> None:
        """A workload is gone or about to be put again: forget its endpoint."""
        backing.endpoints.pop(uid, None)
        backing.memo = None
        if self._passed_over and (uids := self._passed_over.get(backing.key)) is not None:
            uids.pop(uid, None)

    def end_response(self) -> None:
        """No slice of the response is left: drop what services did not take."""
        self._passed_over.clear()

    def _index(self, service: Service) -> None:
        self._by_host.setdefault(service.hostname, []).append(service)
        for vip in service.vips:
            there = self._by_vip.setdefault(vip.network, {}).setdefault(address_key(vip.ip), [])
            if not there or there[-1] is not service:  # not twice where it names an address twice
                there.append(service)
        for vip_range in service.cidr_vips:
            cidr = vip_range.cidr
            ranges = self._by_cidr.setdefault(vip_range.network, {}).setdefault(_length(cidr), {})
            there = ranges.setdefault(int(cidr.network_address), [])
            if not there or there[-1] is not service:  # not twice where it names an address twice
                there.append(service)

    def _unindex(self, service: Service) -> None:
        _take(self._by_host, service.hostname, service)
        for vip in service.vips:
            keys = self._by_vip.get(vip.network)
            if keys is not None:
                _take(keys, address_key(vip.ip), service)
                if not keys:
                    del self._by_vip[vip.network]
        for vip_range in service.cidr_vips:
            lengths = self._by_cidr.get(vip_range.network)
            if lengths is None:
                continue
            length = _length(vip_range.cidr)
            ranges = lengths.get(length)
            if ranges is not None:
                _take(ranges, int(vip_range.cidr.network_address), service)
                if not ranges:
                    del lengths[length]
            if not lengths:
                del self._by_cidr[vip_range.network]

    # lookup

    def get(self, key: NamespacedHostname) -> Service | None:
        """The service of that very key."""
        backing = self._backings.get(key)
        return None if backing is None else backing.service

    def endpoints(self, key: NamespacedHostname) -> Endpoints | None:
        """The endpoints of a known service."""
        backing = self._backings.get(key)
        return None if backing is None or backing.service is None else Endpoints(backing)

    def known_backing(self, key: NamespacedHostname) -> Backing | None:
        """The backing of a known service."""
        backing = self._backings.get(key)
        return None if backing is None or backing.service is None else backing

    def at(self, address: NetworkAddress, client_namespace: str | None) -> Service | None:
        """The best service of an address: one with that very VIP, else one with a range around it."""
        keys = self._by_vip.get(address.network)
        exact = () if keys is None else keys.get(address_key(address.ip), ())
        found = best(exact, client_namespace) if exact else None
        if found is None and address.network in self._by_cidr:
            found = self._around(address, client_namespace)
        return found

    def _around(self, address: NetworkAddress, client_namespace: str | None) -> Service | None:
        """The best range: of the client's namespace, then the narrowest, then canonical, then the oldest."""
        winner: Service | None = None
        score = (False, -1, False)
        number, bits = int(address.ip), address.ip.max_prefixlen
        for (version, length), ranges in self._by_cidr[address.network].items():
            if version != address.ip.version:
                continue
            for service in ranges.get(number >> (bits - length) << (bits - length), ()):
                if service.is_visible_to(client_namespace):
                    own = client_namespace is not None and service.namespace == client_namespace
                    if (own, length, service.canonical) > score:
                        winner, score = service, (own, length, service.canonical)
        return winner

    def named(
        self, hostname: str, client_namespace: str | None, preferred_namespace: str | None = None
    ) -> Service | None:
        """The best service of a hostname."""
        return best(self._by_host.get(hostname, ()), client_namespace, preferred_namespace)

    def all_named(self, hostname: str) -> tuple[Service, ...]:
        """Every service of a hostname, in store order."""
        return tuple(self._by_host.get(hostname, ()))

    def __iter__(self) -> Iterator[Service]:
        for services in self._by_host.values():
            yield from services

    def staged(self) -> Iterator[Backing]:
        """The backings whose service is not known yet."""
        return (each for each in self._backings.values() if each.service is None and each.endpoints)


def best(
    candidates: Iterable[Service], client_namespace: str | None, preferred_namespace: str | None = None
) -> Service | None:
    """Choose among services that share a key (ztunnel src/state/service.rs).

    Not those the client may not see; of each namespace the one sent last. Of these the one in the client's
    namespace, else the last canonical one, else the last in the preferred namespace, else the first.
    """
    visible = {each.namespace: each for each in candidates if each.is_visible_to(client_namespace)}
    if client_namespace is not None and client_namespace in visible:
        return visible[client_namespace]
    first: Service | None = None
    canonical: Service | None = None
    for each in visible.values():
        first = first or each
        if each.canonical:
            canonical = each
    if canonical is not None:
        return canonical
    if preferred_namespace is not None and preferred_namespace in visible:
        return visible[preferred_namespace]
    return first


def _length(cidr: IPv4Network | IPv6Network) -> tuple[int, int]:
    return cidr.version, cidr.prefixlen


def _take(index: dict[K, list[Service]], key: K, service: Service) -> None:
    """Take a service out of a list of an index, and the list when it is empty."""
    there = index.get(key)
    if there is None:
        return
    there[:] = [each for each in there if each is not service]
    if not there:
        del index[key]
