"""A local file read into values. Reading is strict: an error names the place and the value found there."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import MappingProxyType

import msgspec

from ztunnel_trio.errors import ConfigError, PeerBrokeProtocol
from ztunnel_trio.mesh.document.forms import (
    AccountForm,
    DocumentForm,
    GatewayForm,
    LocalityForm,
    MatchForm,
    PolicyForm,
    PortMap,
    ServiceForm,
    StringForm,
    WorkloadForm,
)
from ztunnel_trio.mesh.document.strict_yaml import parse
from ztunnel_trio.mesh.entries import ServiceEntry
from ztunnel_trio.model.address import IPAddress, NamespacedHostname, NetworkAddress
from ztunnel_trio.model.policy import (
    Authorization,
    Exact,
    IPNetwork,
    Match,
    Prefix,
    Presence,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)
from ztunnel_trio.model.service import (
    Endpoint,
    LoadBalancer,
    NetworkCidr,
    Service,
    WeightedWaypoint,
)
from ztunnel_trio.model.workload import (
    NOWHERE,
    ApplicationTunnel,
    GatewayAddress,
    Locality,
    Workload,
)


@dataclass(frozen=True, slots=True)
class MeshDocument:
    """What a file holds."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[ServiceEntry, ...] = ()
    policies: tuple[Authorization, ...] = ()


def read_local(text: str) -> MeshDocument:
    """Read a local file, YAML or JSON.

    Raises:
        ConfigError: naming the place in the document and the value there.
    """
    form = _convert(parse(text))
    services = [_service(each, f"services[{n}]") for n, each in enumerate(form.services)]
    workloads = [_workload(each, f"workloads[{n}]") for n, each in enumerate(form.workloads)]
    policies = [_policy(each, f"policies[{n}]") for n, each in enumerate(form.policies)]
    return MeshDocument(tuple(workloads), tuple(services), tuple(policies))


def _convert(document: object) -> DocumentForm:
    try:
        return msgspec.convert(document, DocumentForm)
    except (msgspec.ValidationError, RecursionError) as error:
        problem, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        if not path:
            raise ConfigError(problem) from error
        raise ConfigError(f"{path}: {problem}{_value_at(document, path)}") from error


def _value_at(document: object, path: str) -> str:
    """The value at a place, to be shown behind an error; nothing where it would not help."""
    found = document
    for key, index in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and index.isdigit() and int(index) < len(found):
            found = found[int(index)]
        else:
            return ""
    return "" if isinstance(found, dict | list) else f", got {found!r}"


def _workload(form: WorkloadForm, at: str) -> Workload:
    if not isinstance(form.services, dict):
        raise ConfigError(f"{at}.services: a map of namespace/hostname to ports is required, {{}} for none")
    services = {
        _hostname(text, f"{at}.services"): _ports(ports, f"{at}.services[{text}]")
        for text, ports in form.services.items()
    }
    tunnel = form.application_tunnel
    return Workload(
        uid=form.uid,
        name=form.name,
        namespace=form.namespace,
        service_account=form.service_account,
        trust_domain=form.trust_domain,
        addresses=tuple([_ip(text, f"{at}.workloadIps[{n}]") for n, text in enumerate(form.workload_ips)]),
        hostname=form.hostname,
        network=form.network,
        network_mode=form.network_mode,
        network_gateway=_gateway(form.network_gateway, f"{at}.networkGateway"),
        protocol=form.protocol,
        native_tunnel=form.native_tunnel,
        application_tunnel=None if tunnel is None else ApplicationTunnel(tunnel.protocol, tunnel.port),
        waypoint=_gateway(form.waypoint, f"{at}.waypoint"),
        node=form.node,
        cluster=form.cluster_id,
        locality=_locality(form.locality),
        health=form.status,
        capacity=form.capacity,
        workload_name=form.workload_name,
        workload_type=form.workload_type,
        canonical_name=form.canonical_name,
        canonical_revision=form.canonical_revision,
        authorization_policies=tuple(form.authorization_policies),
        services=MappingProxyType(services),
    )


def _service(form: ServiceForm, at: str) -> ServiceEntry:
    balancer = form.load_balancer
    return ServiceEntry(
        Service(
            name=form.name,
            namespace=form.namespace,
            hostname=form.hostname,
            vips=tuple([_network_address(text, f"{at}.vips[{n}]") for n, text in enumerate(form.vips)]),
            cidr_vips=tuple(
                [
                    NetworkCidr(each.network, _cidr(each.cidr, f"{at}.cidrVips[{n}].cidr"))
                    for n, each in enumerate(form.cidr_vips)
                ]
            ),
            ports=_ports(form.ports, f"{at}.ports"),
            subject_alt_names=tuple(form.subject_alt_names),
            waypoint=_gateway(form.waypoint, f"{at}.waypoint"),
            weighted_waypoints=tuple(
                [
                    WeightedWaypoint(
                        _gateway_of(each.destination, f"{at}.weightedWaypoints[{n}].destination"), each.weight
                    )
                    for n, each in enumerate(form.weighted_waypoints)
                ]
            ),
            load_balancer=None
            if balancer is None
            else LoadBalancer(tuple(balancer.routing_preferences), balancer.mode, balancer.health_policy),
            ip_families=form.ip_families,
            canonical=form.canonical,
            visibility=form.visibility,
        ),
        MappingProxyType(
            {
                uid: Endpoint(
                    each.workload_uid, _ports(each.port, f"{at}.endpoints[{uid}].port"), each.status
                )
                for uid, each in form.endpoints.items()
            }
        ),
    )


def _policy(form: PolicyForm, at: str) -> Authorization:
    return Authorization(
        name=form.name,
        namespace=form.namespace,
        scope=form.scope,
        action=form.action,
        dry_run=form.dry_run,
        rules=tuple(
            [
                tuple(
                    [
                        tuple([_match(match, f"{at}.rules[{r}][{c}][{m}]") for m, match in enumerate(clause)])
                        for c, clause in enumerate(rule)
                    ]
                )
                for r, rule in enumerate(form.rules)
            ]
        ),
    )


def _match(form: MatchForm, at: str) -> Match:
    return Match(
        namespaces=_strings(form.namespaces, f"{at}.namespaces"),
        not_namespaces=_strings(form.not_namespaces, f"{at}.notNamespaces"),
        principals=_strings(form.principals, f"{at}.principals"),
        not_principals=_strings(form.not_principals, f"{at}.notPrincipals"),
        service_accounts=_accounts(form.service_accounts),
        not_service_accounts=_accounts(form.not_service_accounts),
        source_ips=_networks(form.source_ips, f"{at}.sourceIps"),
        not_source_ips=_networks(form.not_source_ips, f"{at}.notSourceIps"),
        destination_ips=_networks(form.destination_ips, f"{at}.destinationIps"),
        not_destination_ips=_networks(form.not_destination_ips, f"{at}.notDestinationIps"),
        destination_ports=tuple(form.destination_ports),
        not_destination_ports=tuple(form.not_destination_ports),
    )


def _strings(forms: Sequence[StringForm], at: str) -> tuple[StringMatch, ...]:
    return tuple([_string(form, f"{at}[{n}]") for n, form in enumerate(forms)])


def _string(form: StringForm, at: str) -> StringMatch:
    found: list[StringMatch] = []
    if isinstance(form.exact, str):
        found.append(Exact(form.exact))
    if isinstance(form.prefix, str):
        found.append(Prefix(form.prefix))
    if isinstance(form.suffix, str):
        found.append(Suffix(form.suffix))
    if form.presence is not msgspec.UNSET:
        found.append(Presence())
    if len(found) != 1:
        raise ConfigError(f"{at}: expected one of Exact, Prefix, Suffix and Presence")
    return found[0]


def _accounts(forms: Sequence[AccountForm]) -> tuple[ServiceAccountMatch, ...]:
    return tuple([ServiceAccountMatch(form.namespace, form.service_account) for form in forms])


def _networks(texts: Sequence[str], at: str) -> tuple[IPNetwork, ...]:
    return tuple([_cidr(text, f"{at}[{n}]") for n, text in enumerate(texts)])


def _locality(form: LocalityForm | None) -> Locality:
    return NOWHERE if form is None else Locality(form.region, form.zone, form.subzone)


def _gateway(form: GatewayForm | None, at: str) -> GatewayAddress | None:
    return None if form is None else _gateway_of(form, at)


def _gateway_of(form: GatewayForm, at: str) -> GatewayAddress:
    destination: NetworkAddress | NamespacedHostname
    try:
        destination = NetworkAddress.parse(form.destination)
    except PeerBrokeProtocol:
        destination = _hostname(form.destination, f"{at}.destination")
    return GatewayAddress(destination, form.hbone_mtls_port)


def _hostname(text: str, at: str) -> NamespacedHostname:
    try:
        return NamespacedHostname.parse(text)
    except PeerBrokeProtocol as error:
        raise ConfigError(f"{at}: expected namespace/hostname, got {text!r}") from error


def _network_address(text: str, at: str) -> NetworkAddress:
    try:
        return NetworkAddress.parse(text)
    except PeerBrokeProtocol as error:
        raise ConfigError(f"{at}: expected network/IP, got {text!r}") from error


def _ip(text: str, at: str) -> IPAddress:
    try:
        if "%" in text:
            raise ValueError
        return ip_address(text)
    except ValueError as error:
        raise ConfigError(f"{at}: expected an IP address, got {text!r}") from error


def _cidr(text: str, at: str) -> IPNetwork:
    address, slash, length = text.partition("/")
    try:
        if not slash or not length.isdigit() or "%" in address:
            raise ValueError
        return ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"{at}: expected IP/length, got {text!r}") from error


def _ports(ports: PortMap, at: str) -> Mapping[int, int]:
    found: dict[int, int] = {}
    for key, target in ports.items():
        number = (
            int(key) if isinstance(key, int) or (key.isascii() and key.isdigit() and len(key) < 6) else -1
        )
        if not 0 <= number <= 0xFFFF:
            raise ConfigError(f"{at}: expected a port, got {key!r}")
        found[number] = target
    return MappingProxyType(found)
