"""Whether an inbound connection may enter, and where it then goes (ztunnel src/proxy/inbound.rs).

An HBONE CONNECT must name the pod it arrives at, or something the pod stands before as a waypoint. It always
goes to the pod's own address; only the port is the authority's, the service's, or the application tunnel's.
Policies are asked afterwards, about the address finally dialled (`decide.authorize`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from ztunnel_trio.decide.known import Known, NeedAddress
from ztunnel_trio.decide.waypoint import find_destination
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import (
    HboneTarget,
    IPAddress,
    NetworkAddress,
    SocketAddress,
    parse_hbone_target,
)
from ztunnel_trio.model.refusal import Reason, Refusal
from ztunnel_trio.model.service import Service
from ztunnel_trio.model.workload import AppTunnelProtocol, Workload, WorkloadInfo

__all__ = [
    "Admission",
    "InboundRequest",
    "NeedAddress",
    "PlainAdmission",
    "admit",
    "admit_plain",
    "guess_service",
]

_LOOPBACK_V4: Final = IPv4Address("127.0.0.1")
_LOOPBACK_V6: Final = IPv6Address("::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundRequest:
    """One CONNECT. `connection_ip` is the address its TCP connection was made to: the pod's.

    `info` names the pod, `workload` is its record, None while the mesh does not know it.
    """

    method: str
    authority: str | None
    connection_ip: IPAddress
    info: WorkloadInfo
    workload: Workload | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Where an admitted stream goes.

    `destination` is what policies and telemetry see, `upstream` what is dialled: the same, but on loopback
    when `is_loopback`. `tunnel_target` is the destination a PROXY header is to name, None for no header.
    `services` are the services the client may have meant.
    """

    authority: HboneTarget
    destination: SocketAddress
    upstream: SocketAddress
    is_loopback: bool
    tunnel_target: SocketAddress | None
    services: tuple[Service, ...]


@dataclass(frozen=True, slots=True)
class PlainAdmission:
    """A plain connection may be judged by the policies; `service` is the one it is probably for."""

    workload: Workload
    service: Service | None


def admit(
    request: InboundRequest,
    mesh: Mesh,
    *,
    network: str,
    illegal_ports: frozenset[int],
    on_demand: bool,
    localhost_app_tunnel: bool,
    asked: frozenset[str] = frozenset(),
) -> Admission | Refusal | NeedAddress:
    """Decide on one CONNECT. `asked` holds the names the control plane has already answered about."""
    if request.method != "CONNECT":
        return Refusal(Reason.WRONG_METHOD, request.method)
    try:
        authority = parse_hbone_target(request.authority or "")
    except PeerBrokeProtocol:
        return Refusal(Reason.BAD_AUTHORITY, request.authority or "")
    workload, here = request.workload, request.connection_ip
    if workload is None:
        return Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, str(request.info))

    known = Known(asked) if on_demand else _NOTHING_KNOWN
    if isinstance(authority, SocketAddress):
        if authority.ip != here and workload.application_tunnel is None:
            standing = _stands_before(
                NetworkAddress(network, authority.ip), workload, here, mesh, known, on_demand=on_demand
            )
            if isinstance(standing, NeedAddress):
                return standing
            if not standing:
                return Refusal(Reason.IP_MISMATCH, f"{here} != {authority.ip}")
        port, services, named = authority.port, mesh.services_of(workload), None
    else:
        found = _service_named(authority.host, workload, mesh, known, on_demand=on_demand)
        if isinstance(found, NeedAddress):
            return found
        if found is None:
            return Refusal(Reason.UNKNOWN_HOSTNAME, authority.host)
        port = _target_port(found, authority.port, workload, mesh)
        if not port:
            return Refusal(Reason.UNRESOLVED_SERVICE_PORT, str(authority))
        services, named = (found,), found
    if port in illegal_ports:
        return Refusal(Reason.RECURSIVE_CALL)
    return _to_application(
        authority, named, SocketAddress(here, port), workload, services, network, localhost_app_tunnel
    )


def admit_plain(
    destination: SocketAddress,
    info: WorkloadInfo,
    workload: Workload | None,
    mesh: Mesh,
    *,
    illegal_ports: frozenset[int],
) -> PlainAdmission | Refusal:
    """Decide on one plain connection to `destination`, its original one; any address may be dialled."""
    if destination.port in illegal_ports:
        return Refusal(Reason.RECURSIVE_CALL)
    if workload is None:
        return Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, str(info))
    service = guess_service(mesh.services_of(workload), None, workload, destination.port)
    return PlainAdmission(workload, service)


def guess_service(
    services: Iterable[Service], host: str | None, workload: Workload, port: int
) -> Service | None:
    """Which service a connection was probably for: telemetry only.

    The one whose name the client forwarded as `host`, else the first one of which a port leads to `port`.
    """
    by_port: Service | None = None
    for service in services:
        if host is not None and service.hostname == host:
            return service
        if by_port is None and (
            port in service.ports.values() or port in workload.services.get(service.key, {}).values()
        ):
            by_port = service
    return by_port


_NOTHING_KNOWN: Final = Known()


def _stands_before(
    address: NetworkAddress,
    workload: Workload,
    here: IPAddress,
    mesh: Mesh,
    known: Known,
    *,
    on_demand: bool,
) -> bool | NeedAddress:
    """Whether the workload is the waypoint of what has that address; weighted waypoints do not count."""
    target = find_destination(address, None, mesh, known, on_demand=on_demand)
    if isinstance(target, NeedAddress):
        return target
    if target is None or target.waypoint is None:
        return False
    waypoint = find_destination(target.waypoint.destination, None, mesh, known, on_demand=on_demand)
    if isinstance(waypoint, NeedAddress):
        return waypoint
    if isinstance(waypoint, Service):
        return workload.uid in mesh.endpoints(waypoint.key)
    return waypoint is not None and here in waypoint.addresses


def _service_named(
    host: str, workload: Workload, mesh: Mesh, known: Known, *, on_demand: bool
) -> Service | NeedAddress | None:
    """The service of that name as the workload sees it.

    Only a name the workload itself backs is worth asking for: the client may write anything.
    """
    service = mesh.service_named(host, workload.namespace)
    if service is None and on_demand:
        for key in workload.services:
            if key.hostname == host and (name := str(key)) not in known.asked:
                return NeedAddress(name)
    return service


def _target_port(service: Service, port: int, workload: Workload, mesh: Mesh) -> int:
    """The workload's port behind a service's port, 0 if there is none."""
    endpoint = mesh.endpoints(service.key).get(workload.uid)
    if endpoint is not None and port in endpoint.ports:
        return endpoint.ports[port]
    return service.ports.get(port, 0)


def _to_application(
    authority: HboneTarget,
    named: Service | None,
    destination: SocketAddress,
    workload: Workload,
    services: tuple[Service, ...],
    network: str,
    localhost_app_tunnel: bool,
) -> Admission | Refusal:
    """The last step: what an application tunnel changes."""
    tunnel = workload.application_tunnel
    tunnel_target: SocketAddress | None = None
    upstream, is_loopback = destination, False
    if tunnel is not None:
        if tunnel.port is not None:
            upstream = destination = SocketAddress(destination.ip, tunnel.port)
        if tunnel.protocol is AppTunnelProtocol.PROXY:
            target = _tunnel_target(authority, named, network)
            if isinstance(target, Refusal):
                return target
            tunnel_target = target
            if localhost_app_tunnel:
                is_loopback = True
                loopback = _LOOPBACK_V4 if destination.ip.version == 4 else _LOOPBACK_V6
                upstream = SocketAddress(loopback, destination.port)
    return Admission(
        authority=authority,
        destination=destination,
        upstream=upstream,
        is_loopback=is_loopback,
        tunnel_target=tunnel_target,
        services=services,
    )


def _tunnel_target(authority: HboneTarget, named: Service | None, network: str) -> SocketAddress | Refusal:
    """What a PROXY header names: the authority; for a hostname a VIP of its service, IPv4 before IPv6."""
    if isinstance(authority, SocketAddress):
        return authority
    vips = named.vips if named is not None else ()
    if not vips:
        return Refusal(Reason.SERVICE_WITHOUT_ADDRESS, authority.host)
    best = min(vips, key=lambda vip: (vip.network != network, vip.ip.version))
    return SocketAddress(best.ip, authority.port)
