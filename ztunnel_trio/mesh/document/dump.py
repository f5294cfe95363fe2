"""The mesh as values that JSON can hold."""

from collections.abc import Iterable, Mapping, Sequence

from ztunnel_trio.mesh.clashes import Clash
from ztunnel_trio.model.address import NamespacedHostname
from ztunnel_trio.model.policy import (
    Authorization,
    Exact,
    Match,
    Prefix,
    Presence,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)
from ztunnel_trio.model.service import (
    Endpoint,
    Service,
)
from ztunnel_trio.model.workload import (
    NOWHERE,
    GatewayAddress,
    Workload,
)

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


def workload_document(workload: Workload) -> dict[str, Json]:
    """A workload as `/config_dump` shows it: its services as a list of names."""
    document = _workload_document(workload)
    if workload.services:
        document["services"] = [str(key) for key in workload.services]
    return document


def local_workload_document(workload: Workload) -> dict[str, Json]:
    """A workload as a local file holds it: its services with their ports."""
    document = _workload_document(workload)
    document["services"] = {str(key): _port_document(ports) for key, ports in workload.services.items()}
    return document


def _workload_document(workload: Workload) -> dict[str, Json]:
    document: dict[str, Json] = {
        "workloadIps": [str(ip) for ip in workload.addresses],
        "protocol": workload.protocol.value,
        "networkMode": workload.network_mode.value,
        "name": workload.name,
        "namespace": workload.namespace,
        "clusterId": workload.cluster,
        "status": workload.health.value,
        "capacity": workload.capacity,
    }
    texts = {
        "uid": workload.uid,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "network": workload.network,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "hostname": workload.hostname,
        "node": workload.node,
    }
    document.update({key: text for key, text in texts.items() if text})
    if workload.waypoint is not None:
        document["waypoint"] = _gateway_document(workload.waypoint)
    if workload.network_gateway is not None:
        document["networkGateway"] = _gateway_document(workload.network_gateway)
    if workload.native_tunnel:
        document["nativeTunnel"] = True
    if workload.application_tunnel is not None:
        tunnel = workload.application_tunnel
        document["applicationTunnel"] = {"protocol": tunnel.protocol.value, "port": tunnel.port}
    if workload.authorization_policies:
        document["authorizationPolicies"] = list(workload.authorization_policies)
    if workload.locality != NOWHERE:
        where = workload.locality
        document["locality"] = {"region": where.region, "zone": where.zone, "subzone": where.subzone}
    return document


def service_document(service: Service, endpoints: Mapping[str, Endpoint]) -> dict[str, Json]:
    """A service with its endpoints, as `/config_dump` shows it and a local file holds it."""
    document: dict[str, Json] = {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [str(vip) for vip in service.vips],
        "ports": _port_document(service.ports),
        "endpoints": {uid: _endpoint_document(endpoint) for uid, endpoint in endpoints.items()},
        "subjectAltNames": list(service.subject_alt_names),
        "canonical": service.canonical,
        "visibility": service.visibility.value,
    }
    if service.cidr_vips:
        document["cidrVips"] = [{"network": vip.network, "cidr": str(vip.cidr)} for vip in service.cidr_vips]
    if service.waypoint is not None:
        document["waypoint"] = _gateway_document(service.waypoint)
    if service.weighted_waypoints:
        document["weightedWaypoints"] = [
            {"destination": _gateway_document(each.destination), "weight": each.weight}
            for each in service.weighted_waypoints
        ]
    if service.load_balancer is not None:
        balancer = service.load_balancer
        document["loadBalancer"] = {
            "routingPreferences": [scope.value for scope in balancer.routing_preferences],
            "mode": balancer.mode.value,
            "healthPolicy": balancer.health_policy.value,
        }
    if service.ip_families is not None:
        document["ipFamilies"] = service.ip_families.value
    return document


def staged_document(
    staged: Iterable[tuple[NamespacedHostname, Mapping[str, Endpoint]]],
) -> dict[str, Json]:
    """Endpoints whose service is not known, by service and uid."""
    return {
        str(key): {uid: _endpoint_document(endpoint) for uid, endpoint in endpoints.items()}
        for key, endpoints in staged
    }


def clashes_document(services: Iterable[Clash], workloads: Iterable[Clash]) -> dict[str, Json]:
    """Addresses that several services or several workloads claim; of the claimants the first gets it.

    Empty where there are none.
    """
    found: dict[str, dict[str, Json]] = {}
    for kind, clashes in (("services", services), ("workloads", workloads)):
        for clash in clashes:
            found.setdefault(kind, {})[clash.address] = list(clash.claimants)
    return dict(found)


def policy_document(policy: Authorization) -> dict[str, Json]:
    """A policy as `/config_dump` shows it and a local file holds it."""
    return {
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": policy.scope.value,
        "action": policy.action.value,
        "dryRun": policy.dry_run,
        "rules": [[[_match_document(match) for match in clause] for clause in rule] for rule in policy.rules],
    }


def _gateway_document(gateway: GatewayAddress) -> dict[str, Json]:
    return {"destination": str(gateway.destination), "hboneMtlsPort": gateway.hbone_mtls_port}


def _endpoint_document(endpoint: Endpoint) -> dict[str, Json]:
    return {
        "workloadUid": endpoint.workload_uid,
        "port": _port_document(endpoint.ports),
        "status": endpoint.health.value,
    }


def _port_document(ports: Mapping[int, int]) -> dict[str, Json]:
    return {str(service): target for service, target in ports.items()}


def _match_document(match: Match) -> dict[str, Json]:
    lists: dict[str, list[Json]] = {
        "namespaces": [_string_document(each) for each in match.namespaces],
        "notNamespaces": [_string_document(each) for each in match.not_namespaces],
        "serviceAccounts": [_account_document(each) for each in match.service_accounts],
        "notServiceAccounts": [_account_document(each) for each in match.not_service_accounts],
        "principals": [_string_document(each) for each in match.principals],
        "notPrincipals": [_string_document(each) for each in match.not_principals],
        "sourceIps": [str(each) for each in match.source_ips],
        "notSourceIps": [str(each) for each in match.not_source_ips],
        "destinationIps": [str(each) for each in match.destination_ips],
        "notDestinationIps": [str(each) for each in match.not_destination_ips],
        "destinationPorts": list(match.destination_ports),
        "notDestinationPorts": list(match.not_destination_ports),
    }
    return {key: entries for key, entries in lists.items() if entries}


def _string_document(match: StringMatch) -> Json:
    match match:
        case Exact(value):
            return {"Exact": value}
        case Prefix(value):
            return {"Prefix": value}
        case Suffix(value):
            return {"Suffix": value}
        case Presence():
            return {"Presence": []}


def _account_document(match: ServiceAccountMatch) -> Json:
    return {"namespace": match.namespace, "serviceAccount": match.service_account}
