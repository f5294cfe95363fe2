"""Where an outbound connection goes (ztunnel src/proxy/outbound.rs, build_request).

In order: the waypoint of the service dialled; an endpoint of that service, through a network gateway when it
is in another network; the workload dialled, through its own waypoint unless the client is that waypoint; and
for what the mesh does not know, plainly to where the client meant. A waypoint or gateway that cannot be found
is a refusal, never a reason to go around it; and an address the mesh knows as that of an HBONE workload is
never sent to in plaintext because a service shares it.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from ztunnel_trio.decide.balance import Chosen, Draws, choose, find_upstream, pick_address
from ztunnel_trio.decide.known import Chance, HostAnswer, Known, NeedAddress, NeedHost, RouteQuestion
from ztunnel_trio.decide.waypoint import (
    Gateway,
    GatewayKind,
    comes_from,
    find_destination,
    find_gateway,
    service_waypoint,
)
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.facts.network import HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import HboneTarget, HostPort, IPAddress, NetworkAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import LoadBalancingMode, Service
from ztunnel_trio.model.workload import GatewayAddress, InboundProtocol, OutboundProtocol, Workload

__all__ = [
    "ILLEGAL_PORTS",
    "Decision",
    "HostAnswer",
    "Known",
    "NeedAddress",
    "NeedHost",
    "OutboundRequest",
    "Route",
    "calls_itself",
    "route",
]

ILLEGAL_PORTS: Final = frozenset({OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT})
NOTHING_TRIED: Final[frozenset[str]] = frozenset()
GATEWAYS_LOOKED_AT: Final = (
    8  # of a service, for one that was not tried in vain; each look passes its endpoints
)


@dataclass(frozen=True, slots=True)
class OutboundRequest:
    """One connection leaving a workload: who opens it, from where, to where, and the node's network."""

    source: Workload
    client: IPAddress
    target: SocketAddress
    network: str
    hbone_port: int = HBONE_PORT  # where workloads of the mesh take HBONE
    is_target_here: bool = False  # its address is one of the source's own; told for illegal ports only


@dataclass(frozen=True, slots=True)
class Route:
    """How a connection is made.

    `destination` is dialled. HBONE sends CONNECT `authority` there and expects one of the identities
    `expected`; double HBONE sends it again inside, expecting one of `inner_expected`. `workload` and
    `service` are what it goes to, for telemetry; `workload` is also what to exclude when asking again.
    """

    protocol: OutboundProtocol
    destination: SocketAddress
    authority: HboneTarget | None
    expected: tuple[SpiffeId, ...]
    inner_expected: tuple[SpiffeId, ...]
    workload: Workload | None
    service: Service | None
    notes: tuple[str, ...] = ()


Decision = Route | Refusal | NeedAddress | NeedHost


def calls_itself(target: SocketAddress, illegal_ports: frozenset[int], *, is_here: bool = False) -> bool:
    """Whether a client dials the proxy's own ports in its own pod, which would loop for ever.

    `is_here`: the address is one of the pod's, be it one that istiod does not know.
    """
    return target.port in illegal_ports and (is_here or target.ip.is_loopback)


def route(
    request: OutboundRequest,
    mesh: Mesh,
    known: Known,
    rng: Chance,
    *,
    on_demand: bool,
    illegal_ports: frozenset[int] = ILLEGAL_PORTS,
    exclude: frozenset[str] = NOTHING_TRIED,
    draws: Draws | None = None,
) -> Decision:
    """Choose where an outbound connection goes.

    `rng` is seeded per connection, so asking again with more facts makes the same picks. `exclude` holds
    the workloads that were tried in vain; with it the answer is another one or a refusal.
    """
    source, target = request.source, request.target
    if calls_itself(target, illegal_ports, is_here=request.is_target_here):
        return Refusal(Reason.RECURSIVE_CALL)
    question = RouteQuestion(
        source=source,
        target=target,
        mesh=mesh,
        known=known,
        rng=rng,
        on_demand=on_demand,
        exclude=exclude,
        draws=draws,
    )
    address = NetworkAddress(request.network, target.ip)
    there = find_destination(address, source.namespace, mesh, known, on_demand=on_demand)
    if isinstance(there, NeedAddress):
        return there
    service = there if isinstance(there, Service) else None
    if service is not None and (reference := service_waypoint(service, rng)) is not None:
        return _before_service(request, service, reference, question)
    for _ in range(GATEWAYS_LOOKED_AT):
        upstream = _upstream(request, address, there, question)
        if isinstance(upstream, NeedAddress):
            return upstream
        if upstream is None:
            if question.exclude or (service is not None and not _is_passthrough(service)):
                return Refusal(Reason.NO_HEALTHY_UPSTREAM, str(target))
            return _past_the_services(request, question)
        if upstream.workload.network == source.network:
            break
        decision = _through_gateway(request, upstream, service, question)
        if not exclude or service is None or not isinstance(decision, Refusal):
            return decision
        question = question.without(_behind_the_same_gateway(upstream, service, mesh))
    else:
        return Refusal(Reason.NO_HEALTHY_UPSTREAM, str(target))
    if service is None and upstream.workload.waypoint is not None:
        return _to_workload_with_waypoint(request, upstream, upstream.workload.waypoint, question)
    return _direct(request, upstream, question)


def _past_the_services(request: OutboundRequest, question: RouteQuestion) -> Decision:
    """To what was dialled, as no service there takes the connection: plainly, if the mesh knows it not.

    A workload that speaks HBONE at that very address gets HBONE all the same, for the ports the service has
    not; what a service leaves without endpoints is refused (decision 0011).
    """
    source, target, mesh = request.source, request.target, question.mesh
    address = NetworkAddress(source.network, target.ip)
    workload = _hbone_workload(address, mesh)
    if workload is None:
        return Route(OutboundProtocol.TCP, target, None, (), (), None, None)
    service = mesh.service_at(address, source.namespace)
    if service is not None and not _is_passthrough(service) and target.port in service.ports:
        return Refusal(Reason.NO_HEALTHY_UPSTREAM, str(target))
    upstream = Chosen(workload, target.port, None)
    decision = (
        _direct(request, upstream, question)
        if workload.waypoint is None
        else _to_workload_with_waypoint(request, upstream, workload.waypoint, question)
    )
    if isinstance(decision, Route) and service is not None:
        note = f"{target} is also an address of service {service.key}: HBONE to workload {workload.uid}"
        return replace(decision, notes=(*decision.notes, note))
    return decision


def _hbone_workload(address: NetworkAddress, mesh: Mesh) -> Workload | None:
    """The workload of an address, if it speaks HBONE."""
    workload = mesh.workload_at(address)
    return workload if workload is not None and workload.protocol is InboundProtocol.HBONE else None


def _is_passthrough(service: Service) -> bool:
    balancer = service.load_balancer
    return balancer is not None and balancer.mode is LoadBalancingMode.PASSTHROUGH


def _upstream(
    request: OutboundRequest,
    address: NetworkAddress,
    there: Service | Workload | None,
    question: RouteQuestion,
) -> Chosen | NeedAddress | None:
    """The endpoint or workload dialled, seen from the source's network; None: the mesh has none.

    `there` is what was found at the target's `address` in the node's network, nearly always the same one.
    """
    source, target, mesh = request.source, request.target, question.mesh
    if source.network != request.network:
        return _upstream_elsewhere(request, question)
    if there is None:
        return None
    if isinstance(there, Service):
        if _is_passthrough(there):
            return None
        return choose(
            there, target.port, source, mesh, question.rng, waypoint=False, exclude=question.exclude
        )
    if mesh.service_at(address, source.namespace) is None:  # nothing it hides
        return None if there.uid in question.exclude else Chosen(there, target.port, None)
    return find_upstream(
        address, target.port, source, mesh, question.rng, waypoint=False, exclude=question.exclude
    )


def _upstream_elsewhere(request: OutboundRequest, question: RouteQuestion) -> Chosen | NeedAddress | None:
    """As `_upstream`, for a source that is in another network than the node says."""
    source, target, mesh = request.source, request.target, question.mesh
    address = NetworkAddress(source.network, target.ip)
    if question.on_demand:
        there = find_destination(address, source.namespace, mesh, question.known, on_demand=True)
        if isinstance(there, NeedAddress):
            return there
    return find_upstream(
        address, target.port, source, mesh, question.rng, waypoint=False, exclude=question.exclude
    )


def _before_service(
    request: OutboundRequest, service: Service, reference: GatewayAddress, question: RouteQuestion
) -> Decision:
    """To the waypoint of a service, wherever that is."""
    waypoint = find_gateway(reference, GatewayKind.WAYPOINT, question)
    if not isinstance(waypoint, Gateway):
        return waypoint
    if waypoint.chosen.workload.network != request.source.network:
        return _through_gateway(request, waypoint.chosen, service, question)
    return _to_waypoint(request, waypoint, service, question)


def _to_workload_with_waypoint(
    request: OutboundRequest, upstream: Chosen, reference: GatewayAddress, question: RouteQuestion
) -> Decision:
    """To the waypoint of a workload, unless it is the waypoint that asks."""
    is_waypoint = comes_from(
        reference,
        request.source,
        request.client,
        question.mesh,
        question.known,
        on_demand=question.on_demand,
    )
    if isinstance(is_waypoint, NeedAddress):
        return is_waypoint
    if is_waypoint:
        return _direct(request, upstream, question)
    waypoint = find_gateway(reference, GatewayKind.WAYPOINT, question)
    if not isinstance(waypoint, Gateway):
        return waypoint
    return _to_waypoint(request, waypoint, upstream.service, question)


def _to_waypoint(
    request: OutboundRequest, waypoint: Gateway, service: Service | None, question: RouteQuestion
) -> Decision:
    """HBONE to a waypoint in our network, whatever protocol its workload says; it judges and goes on."""
    chosen = waypoint.chosen
    ip = _address_of(chosen, waypoint.family_of, question)
    if isinstance(ip, Refusal | NeedHost):
        return ip
    names = _names(chosen.service)
    return Route(
        OutboundProtocol.HBONE,
        SocketAddress(ip, chosen.port),
        request.target,
        (*names.identities, chosen.workload.identity),
        (),
        chosen.workload,
        service,
        names.notes,
    )


def _through_gateway(
    request: OutboundRequest, upstream: Chosen, service: Service | None, question: RouteQuestion
) -> Decision:
    """Double HBONE into another network. There the service is asked for by name; it may choose again.

    What ends the inner tunnel proves one of the service's names only: many remote workloads stand behind
    one record, so none of their identities can be expected.
    """
    if service is None:
        return Refusal(Reason.NO_SERVICE_FOR_TARGET, str(request.target))
    reference = upstream.workload.network_gateway
    if reference is None:
        return Refusal(Reason.NO_VALID_DESTINATION, str(upstream.workload))
    gateway = find_gateway(reference, GatewayKind.NETWORK_GATEWAY, question)
    if not isinstance(gateway, Gateway):
        return gateway
    chosen = gateway.chosen
    ip = _address_of(chosen, gateway.family_of, question)
    if isinstance(ip, Refusal | NeedHost):
        return ip
    outer, inner = _names(chosen.service), _names(upstream.service)
    return Route(
        OutboundProtocol.DOUBLE_HBONE,
        SocketAddress(ip, chosen.port),
        HostPort(service.hostname, request.target.port),
        (*outer.identities, chosen.workload.identity),
        inner.identities,
        chosen.workload,
        service,
        outer.notes + inner.notes,
    )


def _behind_the_same_gateway(upstream: Chosen, service: Service, mesh: Mesh) -> frozenset[str]:
    """An endpoint and those that cannot be reached either, their gateway having been tried in vain."""
    reference, uids = upstream.workload.network_gateway, mesh.endpoints(service.key)
    workloads = (mesh.workload(uid) for uid in uids)
    others = (each.uid for each in workloads if each is not None and each.network_gateway == reference)
    return frozenset((upstream.workload.uid, *others))


def _direct(request: OutboundRequest, upstream: Chosen, question: RouteQuestion) -> Decision:
    """To the endpoint itself, by what it speaks."""
    workload = upstream.workload
    ip = _address_of(upstream, request.target.ip, question)
    if isinstance(ip, Refusal | NeedHost):
        return ip
    address = SocketAddress(ip, upstream.port)
    notes: tuple[str, ...] = ()
    if workload.protocol is InboundProtocol.TCP:
        hidden = None
        if upstream.service is not None:  # its endpoint may say less of an address than the pod there
            hidden = _hbone_workload(NetworkAddress(workload.network, ip), question.mesh)
        if hidden is None:
            return Route(OutboundProtocol.TCP, address, None, (), (), workload, upstream.service)
        if hidden.uid in question.exclude:
            return Refusal(Reason.NO_HEALTHY_UPSTREAM, str(request.target))
        notes = (f"{ip} of endpoint {workload.uid} is an address of {hidden.uid}: HBONE to that workload",)
        workload = hidden
    names = _names(upstream.service)
    return Route(
        OutboundProtocol.HBONE,
        SocketAddress(ip, request.hbone_port),
        address,
        (*names.identities, workload.identity),
        (),
        workload,
        upstream.service,
        names.notes + notes,
    )


def _address_of(
    chosen: Chosen, family_of: IPAddress, question: RouteQuestion
) -> IPAddress | Refusal | NeedHost:
    """The address to dial of a chosen workload, in the family of the one given where it has a choice."""
    workload = chosen.workload
    if workload.uid in question.exclude:
        return Refusal(Reason.NO_HEALTHY_UPSTREAM, str(question.target))
    ip = pick_address(workload, chosen.service, family_of)
    if ip is not None:
        return ip
    if not workload.hostname:
        return Refusal(Reason.NO_VALID_DESTINATION, str(workload))
    if workload.uid not in question.known.hosts:
        return NeedHost(workload)
    addresses = question.known.hosts[workload.uid]
    if addresses is None:
        return Refusal(Reason.NO_RESOLVED_ADDRESSES, workload.uid)
    if not addresses:
        return Refusal(Reason.NO_USABLE_RECORDS, workload.uid)
    same_family = [ip for ip in addresses if ip.version == family_of.version]
    return question.rng.choice(same_family or addresses)


@dataclass(frozen=True, slots=True)
class _Names:
    """The SANs of a service that are identities, and a note on each that is not."""

    identities: tuple[SpiffeId, ...]
    notes: tuple[str, ...]


_NO_NAMES: Final = _Names((), ())


def _names(service: Service | None) -> _Names:
    if service is None or not service.subject_alt_names:
        return _NO_NAMES
    return _parse_names(service.subject_alt_names)


@lru_cache(maxsize=1024)
def _parse_names(texts: tuple[str, ...]) -> _Names:
    identities: list[SpiffeId] = []
    notes: list[str] = []
    for text in texts:
        try:
            identities.append(SpiffeId.parse(text))
        except PeerBrokeProtocol as error:
            notes.append(f"ignoring invalid SAN {text}: {error}")
    return _Names(tuple(identities), tuple(notes))
