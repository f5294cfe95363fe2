"""Which endpoint of a service takes a connection: filter, locality, weight (ztunnel src/state.rs).

Filtering and ranking look at every endpoint, a connection needs one draw: `Draws` keeps what is drawn from
until the service or one of its workloads changes. It belongs to whoever balances; the mesh only says, by a
number, whether something has changed.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from ztunnel_trio.decide.known import Chance
from ztunnel_trio.mesh.kinds import BalancingFacts
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import IPAddress, NamespacedHostname, NetworkAddress
from ztunnel_trio.model.service import (
    Endpoint,
    IPFamilies,
    LoadBalancer,
    LoadBalancingMode,
    Scope,
    Service,
)
from ztunnel_trio.model.workload import Workload

DRAWS_KEPT: Final = 64  # of one service; the workloads of a node differ in little
SERVICES_KEPT: Final = 4096  # with draws; the oldest makes room
NOTHING_TRIED: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Chosen:
    """An endpoint and the port to dial there; `service` None: the workload itself was dialled."""

    workload: Workload
    port: int
    service: Service | None


@dataclass(frozen=True, slots=True)
class _Draw:
    """Endpoints to draw from, and the running sums of their weights."""

    uids: tuple[str, ...]
    sums: tuple[int, ...]


class _SeenFrom(NamedTuple):
    """What of a question its draw depends on, but for the service."""

    port: int
    waypoint: bool
    network: str
    region: str
    zone: str
    subzone: str
    node: str
    cluster: str


@dataclass(slots=True, eq=False)
class _ServiceDraws:
    """The draws of one version of a service and its endpoints."""

    version: int
    service: Service
    draws: dict[_SeenFrom, _Draw] = field(default_factory=dict)


class Draws:
    """What endpoints are drawn from, kept between connections; bounded."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[NamespacedHostname, _ServiceDraws] = {}

    def of(self, service: Service, mesh: Mesh) -> dict[_SeenFrom, _Draw] | None:
        """The draws of a service as it is now, to be added to; None where changes would not be seen."""
        version = mesh.endpoints_version(service)
        if version is None:
            return None
        key = service.key
        kept = self._kept.get(key)
        if kept is None or kept.version != version or kept.service is not service:
            if kept is None and len(self._kept) >= SERVICES_KEPT:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[key] = _ServiceDraws(version, service)
        elif len(kept.draws) >= DRAWS_KEPT:
            kept.draws.clear()
        return kept.draws


def find_upstream(
    address: NetworkAddress,
    port: int,
    source: Workload,
    mesh: Mesh,
    rng: Chance,
    *,
    waypoint: bool,
    exclude: frozenset[str] = NOTHING_TRIED,
    draws: Draws | None = None,
) -> Chosen | None:
    """What the mesh has behind an address: an endpoint of the service there, else the workload there.

    None: nothing, or a service that asks for the original destination. `waypoint`: the address is that of
    a waypoint.
    """
    service = mesh.service_at(address, source.namespace)
    if service is not None:
        if service.load_balancer is not None and service.load_balancer.mode is LoadBalancingMode.PASSTHROUGH:
            return None
        return choose(service, port, source, mesh, rng, waypoint=waypoint, exclude=exclude, draws=draws)
    workload = mesh.workload_at(address)
    if workload is None or workload.uid in exclude:
        return None
    return Chosen(workload, port, None)


def choose(
    service: Service,
    port: int,
    source: Workload,
    mesh: Mesh,
    rng: Chance,
    *,
    waypoint: bool,
    exclude: frozenset[str] = NOTHING_TRIED,
    draws: Draws | None = None,
) -> Chosen | None:
    """Draw an endpoint of a service for a connection from `source` to a service port, by weight.

    None: no endpoint fits. `waypoint`: the service is a waypoint, whose endpoints may take ports they do
    not name. `exclude` holds the workloads not to draw. `draws`: what was found out for connections before.
    """
    if port not in service.ports and not waypoint:
        return None
    draw = _draw(service, port, source, mesh, waypoint, exclude, draws)
    if not draw.sums or draw.sums[-1] == 0:
        return None
    only = len(draw.uids) == 1
    uid = draw.uids[0 if only else bisect_right(draw.sums, rng.randrange(draw.sums[-1]))]
    workload = mesh.workload(uid)
    if workload is None:
        return None
    target = target_port(service, mesh.endpoints(service.key)[uid].ports, port, workload)
    return None if target is None else Chosen(workload, target, service)


def target_port(service: Service, ports: Mapping[int, int], port: int, workload: Workload) -> int | None:
    """The port to dial for a service port: the endpoint's, the service's, or that of an application tunnel,
    which keeps the port asked for; None if nobody knows one."""
    if port in ports:
        return ports[port]
    target = service.ports.get(port, 0)
    if target:
        return target
    tunnel = workload.application_tunnel
    return port if tunnel is not None and tunnel.port is not None else None


def pick_address(workload: Workload, service: Service | None, family_of: IPAddress) -> IPAddress | None:
    """The address to dial of a workload; None: it has none the service allows.

    The very address dialled if it is the workload's, else the first of its family, else the first.
    """
    if family_of in workload.addresses:
        return family_of
    families = None if service is None else service.ip_families
    first: IPAddress | None = None
    for ip in workload.addresses:
        if (families is IPFamilies.IPV4 and ip.version != 4) or (
            families is IPFamilies.IPV6 and ip.version != 6
        ):
            continue
        if ip.version == family_of.version:
            return ip
        first = first or ip
    return first


def _draw(
    service: Service,
    port: int,
    source: Workload,
    mesh: Mesh,
    waypoint: bool,
    exclude: frozenset[str],
    draws: Draws | None,
) -> _Draw:
    """The endpoints that fit best, as found out before if nothing is excluded."""
    known = None if exclude or draws is None else draws.of(service, mesh)
    if known is None:
        return _make_draw(service, port, source, mesh, waypoint, exclude)
    where = source.locality
    seen_from = _SeenFrom(
        port, waypoint, source.network, where.region, where.zone, where.subzone, source.node, source.cluster
    )
    draw = known.get(seen_from)
    if draw is None:
        draw = known[seen_from] = _make_draw(service, port, source, mesh, waypoint, exclude)
    return draw


def _make_draw(
    service: Service, port: int, source: Workload, mesh: Mesh, waypoint: bool, exclude: frozenset[str]
) -> _Draw:
    balancer = service.load_balancer
    ranked = balancer is not None and balancer.mode is not LoadBalancingMode.STANDARD
    highest = -1
    uids: list[str] = []
    weights: list[int] = []
    for uid, facts in _fitting(service, port, source, mesh, waypoint, exclude):
        rank = _rank(balancer, source, facts) if ranked and balancer is not None else 0
        if rank is None or rank < highest:
            continue
        if rank > highest:
            highest = rank
            uids.clear()
            weights.clear()
        uids.append(uid)
        weights.append(facts.prototype.capacity)
    return _Draw(tuple(uids), tuple(accumulate(weights)))


def _fitting(
    service: Service, port: int, source: Workload, mesh: Mesh, waypoint: bool, exclude: frozenset[str]
) -> Iterator[tuple[str, BalancingFacts]]:
    """The endpoints that can take a connection from `source` to a port."""
    target = service.ports.get(port)
    for uid, endpoint in mesh.endpoints(service.key).items():
        if uid in exclude:
            continue
        facts = mesh.balancing_facts(uid)
        if facts is not None and _fits(endpoint, target, port, source, facts, waypoint):
            yield uid, facts


def _fits(
    endpoint: Endpoint, target: int | None, port: int, source: Workload, facts: BalancingFacts, waypoint: bool
) -> bool:
    workload = facts.prototype
    if waypoint:
        if target is None and workload.application_tunnel is None:
            return False
    elif not target and port not in endpoint.ports:  # a named port this endpoint does not have
        return False
    if facts.has_addresses or workload.hostname:
        return True
    return workload.network != source.network and workload.network_gateway is not None


def _rank(balancer: LoadBalancer, source: Workload, facts: BalancingFacts) -> int | None:
    """How well an endpoint fits the preferences, larger is better; None: not at all.

    Preferences count until the first that differs. A network that differs, named first, is only skipped,
    so that of several remote endpoints the near ones win; but any endpoint in the own network beats them.
    """
    preferences = balancer.routing_preferences
    rank = bonus = 0
    for n, scope in enumerate(preferences):
        if _same(scope, source, facts):
            rank += 1
            if n == 0 and scope is Scope.NETWORK:
                bonus = len(preferences) - 1
        elif n > 0 or scope is not Scope.NETWORK:
            break
    if balancer.mode is LoadBalancingMode.STRICT and rank < len(preferences):
        return None
    return rank + bonus


def _same(scope: Scope, source: Workload, facts: BalancingFacts) -> bool:
    """Whether source and endpoint agree in a scope; empty equals empty."""
    match scope:
        case Scope.REGION:
            return source.locality.region == facts.node_locality.locality.region
        case Scope.ZONE:
            return source.locality.zone == facts.node_locality.locality.zone
        case Scope.SUBZONE:
            return source.locality.subzone == facts.node_locality.locality.subzone
        case Scope.NODE:
            return source.node == facts.node_locality.node
        case Scope.CLUSTER:
            return source.cluster == facts.prototype.cluster
        case Scope.NETWORK:
            return source.network == facts.prototype.network
