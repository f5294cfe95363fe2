"""Which waypoint or network gateway stands before a target, and whether traffic already comes from it.

Both are references: an address or a name, and a port. By address the reference is routed like traffic of its
own, and its address family holds; by name it adapts to the family the client dialled.
"""

from dataclasses import dataclass
from enum import Enum

from ztunnel_trio.decide.balance import Chosen, choose, find_upstream
from ztunnel_trio.decide.known import Chance, Known, NeedAddress, RouteQuestion
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import IPAddress, NamespacedHostname, NetworkAddress
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import GatewayAddress, Workload


class GatewayKind(Enum):
    """What a reference is for; the values are the words of the refusal."""

    WAYPOINT = "waypoint"
    NETWORK_GATEWAY = "network gateway"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A chosen waypoint or gateway, and the address whose family it is to be dialled in."""

    chosen: Chosen
    family_of: IPAddress


def service_waypoint(service: Service, rng: Chance) -> GatewayAddress | None:
    """The waypoint of a service for one connection: drawn by weight where weights are given."""
    if service.weighted_waypoints:
        weights = [option.weight for option in service.weighted_waypoints]
        if any(weights):
            return rng.choices(service.weighted_waypoints, weights)[0].destination
    return service.waypoint


def find_gateway(
    reference: GatewayAddress, kind: GatewayKind, question: RouteQuestion
) -> Gateway | Refusal | NeedAddress:
    """Choose the workload behind a reference. There is no way around one that cannot be found."""
    if isinstance(reference.destination, NetworkAddress):
        return _find_by_address(reference, reference.destination, kind, question)
    return _find_by_name(reference, reference.destination, kind, question)


def _find_by_address(
    reference: GatewayAddress, destination: NetworkAddress, kind: GatewayKind, question: RouteQuestion
) -> Gateway | Refusal | NeedAddress:
    source, mesh = question.source, question.mesh
    if question.on_demand:
        there = find_destination(destination, source.namespace, mesh, question.known, on_demand=True)
        if isinstance(there, NeedAddress):
            return there
    chosen = find_upstream(
        destination,
        reference.hbone_mtls_port,
        source,
        mesh,
        question.rng,
        waypoint=kind is GatewayKind.WAYPOINT,
        exclude=question.exclude,
        draws=question.draws,
    )
    return _unknown(kind, _dump(reference)) if chosen is None else Gateway(chosen, destination.ip)


def _find_by_name(
    reference: GatewayAddress,
    destination: NamespacedHostname,
    kind: GatewayKind,
    question: RouteQuestion,
) -> Gateway | Refusal | NeedAddress:
    mesh, port = question.mesh, reference.hbone_mtls_port
    there = find_destination(destination, None, mesh, question.known, on_demand=question.on_demand)
    if isinstance(there, NeedAddress):
        return there
    if there is None:
        return _unknown(kind, destination.hostname)
    if isinstance(there, Workload):
        return Gateway(Chosen(there, port, None), question.target.ip)
    chosen = choose(
        there,
        port,
        question.source,
        mesh,
        question.rng,
        waypoint=kind is GatewayKind.WAYPOINT,
        exclude=question.exclude,
        draws=question.draws,
    )
    return _unknown(kind, _dump(reference)) if chosen is None else Gateway(chosen, question.target.ip)


def find_destination(
    destination: NetworkAddress | NamespacedHostname,
    client_namespace: str | None,
    mesh: Mesh,
    known: Known,
    *,
    on_demand: bool,
) -> Workload | Service | NeedAddress | None:
    """What stands at an address (a workload hides a service) or under a name (a service hides a workload)."""
    found: Workload | Service | None
    if isinstance(destination, NetworkAddress):
        found = mesh.workload_at(destination)
        if found is None:
            found = mesh.service_at(destination, client_namespace)
    else:
        found = mesh.service(destination)
        if found is None:
            found = mesh.workload_by_hostname(destination)
    if found is None and on_demand and (name := str(destination)) not in known.asked:
        return NeedAddress(name)
    return found


def comes_from(
    waypoint: GatewayAddress,
    source: Workload,
    client: IPAddress,
    mesh: Mesh,
    known: Known,
    *,
    on_demand: bool,
) -> bool | NeedAddress:
    """Whether the client is that waypoint: one of its workloads has both its address and its identity."""
    found = find_destination(waypoint.destination, None, mesh, known, on_demand=on_demand)
    if found is None or isinstance(found, NeedAddress):
        return False if found is None else found
    if isinstance(found, Workload):
        return _is(found, source, client)
    for uid in mesh.endpoints(found.key):
        workload = mesh.workload(uid)
        if workload is not None and _is(workload, source, client):
            return True
    return False


def _is(workload: Workload, source: Workload, client: IPAddress) -> bool:
    return client in workload.addresses and workload.identity == source.identity


def _unknown(kind: GatewayKind, reference: str) -> Refusal:
    if kind is GatewayKind.WAYPOINT:
        return Refusal(Reason.UNKNOWN_WAYPOINT, reference)
    return Refusal(Reason.UNKNOWN_NETWORK_GATEWAY, reference)


def _dump(reference: GatewayAddress) -> str:
    """A reference as operators know it from the Rust ztunnel's log."""
    destination = reference.destination
    if isinstance(destination, NetworkAddress):
        where = f'Address(NetworkAddress {{ network: "{destination.network}", address: {destination.ip} }})'
    else:
        where = (
            f'Hostname(NamespacedHostname {{ namespace: "{destination.namespace}", '
            f'hostname: "{destination.hostname}" }})'
        )
    return f"GatewayAddress {{ destination: {where}, hbone_mtls_port: {reference.hbone_mtls_port} }}"
