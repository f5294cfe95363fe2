"""The JSON and YAML form of the mesh, both ways: config dumps, local files, saved dumps.

Names and shapes are those of the Rust ztunnel's `/config_dump` and `LOCAL_XDS` file. In a file a workload
maps each of its services to ports; a dump lists the services and has the ports with the endpoints. Reading
is strict; an error names the place in the document and the value found there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Annotated, Final, TypeVar, cast

import msgspec
import yaml

from ztunnel_trio.errors import ConfigError, PeerBrokeProtocol
from ztunnel_trio.mesh.decode import NO_ENDPOINTS, ServiceEntry
from ztunnel_trio.model.address import IPAddress, NamespacedHostname, NetworkAddress
from ztunnel_trio.model.policy import (
    Action,
    Authorization,
    Exact,
    IPNetwork,
    Match,
    PolicyScope,
    Prefix,
    Presence,
    ServiceAccountMatch,
    StringMatch,
    Suffix,
)
from ztunnel_trio.model.service import (
    Endpoint,
    HealthPolicy,
    IPFamilies,
    LoadBalancer,
    LoadBalancingMode,
    NetworkCidr,
    Scope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel_trio.model.workload import (
    NOWHERE,
    ApplicationTunnel,
    AppTunnelProtocol,
    GatewayAddress,
    Health,
    InboundProtocol,
    Locality,
    NetworkMode,
    Workload,
)

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

# Writing --------------------------------------------------------------------------------------------------


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


# Reading: the forms ---------------------------------------------------------------------------------------

PortNumber = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Number = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
PortMap = dict[int | str, PortNumber]


class _Form(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """An object with no other keys than these."""


class _GatewayForm(_Form, frozen=True):
    destination: str
    hbone_mtls_port: PortNumber


class _ApplicationTunnelForm(_Form, frozen=True):
    protocol: AppTunnelProtocol
    port: PortNumber | None = None


class _LocalityForm(msgspec.Struct, frozen=True):
    region: str
    zone: str
    subzone: str


class _WorkloadForm(_Form, frozen=True):
    workload_ips: list[str]
    namespace: str
    services: dict[str, PortMap] | list[str] | msgspec.UnsetType = msgspec.UNSET
    uid: str = ""
    name: str = ""
    service_account: str = ""
    trust_domain: str = ""
    network: str = ""
    protocol: InboundProtocol = InboundProtocol.TCP
    network_mode: NetworkMode = NetworkMode.STANDARD
    waypoint: _GatewayForm | None = None
    network_gateway: _GatewayForm | None = None
    workload_name: str = ""
    workload_type: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    hostname: str = ""
    node: str = ""
    native_tunnel: bool = False
    application_tunnel: _ApplicationTunnelForm | None = None
    authorization_policies: list[str] = []
    status: Health = Health.HEALTHY
    cluster_id: str = ""
    locality: _LocalityForm | None = None
    capacity: Number = 1


class _EndpointForm(_Form, frozen=True):
    workload_uid: str
    port: PortMap
    status: Health


class _CidrForm(_Form, frozen=True):
    network: str
    cidr: str


class _WeightedForm(_Form, frozen=True):
    destination: _GatewayForm
    weight: Number


class _BalancerForm(_Form, frozen=True):
    routing_preferences: list[Scope]
    mode: LoadBalancingMode
    health_policy: HealthPolicy


class _ServiceForm(_Form, frozen=True):
    name: str
    namespace: str
    hostname: str
    vips: list[str]
    ports: PortMap
    cidr_vips: list[_CidrForm] = []
    endpoints: dict[str, _EndpointForm] = {}
    subject_alt_names: list[str] = []
    waypoint: _GatewayForm | None = None
    weighted_waypoints: list[_WeightedForm] = []
    load_balancer: _BalancerForm | None = None
    ip_families: IPFamilies | None = None
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC


class _StringForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exact: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Exact")
    prefix: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Prefix")
    suffix: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Suffix")
    presence: list[str] | msgspec.UnsetType | None = msgspec.field(default=msgspec.UNSET, name="Presence")


class _AccountForm(_Form, frozen=True):
    namespace: str
    service_account: str


class _MatchForm(msgspec.Struct, frozen=True, rename="camel"):
    namespaces: list[_StringForm] = []
    not_namespaces: list[_StringForm] = []
    service_accounts: list[_AccountForm] = []
    not_service_accounts: list[_AccountForm] = []
    principals: list[_StringForm] = []
    not_principals: list[_StringForm] = []
    source_ips: list[str] = []
    not_source_ips: list[str] = []
    destination_ips: list[str] = []
    not_destination_ips: list[str] = []
    destination_ports: list[PortNumber] = []
    not_destination_ports: list[PortNumber] = []


class _PolicyForm(_Form, frozen=True):
    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    dry_run: bool
    rules: list[list[list[_MatchForm]]]


class _DocumentForm(_Form, frozen=True):
    workloads: list[_WorkloadForm] = []
    policies: list[_PolicyForm] = []
    services: list[_ServiceForm] = []


class _DumpForm(msgspec.Struct, frozen=True):
    workloads: list[_WorkloadForm] = []
    policies: list[_PolicyForm] = []
    services: list[_ServiceForm] = []


# Reading --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MeshDocument:
    """What a file or a dump holds."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[ServiceEntry, ...] = ()
    policies: tuple[Authorization, ...] = ()


def read_local(text: str) -> MeshDocument:
    """Read a local file, YAML or JSON.

    Raises:
        ConfigError: naming the place in the document and the value there.
    """
    return _document(_convert(_parse(text), _DocumentForm), is_dump=False)


def read_dump(text: str) -> MeshDocument:
    """Read what `/config_dump` printed; other parts of the dump are skipped.

    Raises:
        ConfigError: naming the place in the document and the value there.
    """
    form = _convert(_parse(text), _DumpForm)
    return _document(_DocumentForm(form.workloads, form.policies, form.services), is_dump=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, string matches as tags, no key twice. PyYAML's own scalars are those of YAML 1.1."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,
    ) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} twice", key.start_mark
                    )
                seen.add(key.value)
        return cast(dict[object, object], super().construct_mapping(node, deep))


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """The core schema (YAML 1.2.2, 10.3.2), by the characters a scalar may begin with."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, pattern, first in (
        ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
        ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
        ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
        ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
        ("merge", r"<<", ["<"]),
    ):
        for character in first:
            entry = (f"tag:yaml.org,2002:{tag}", re.compile(f"^{pattern}$"))
            found.setdefault(character, []).append(entry)
    return found


_TAGS: Final = ("Exact", "Prefix", "Suffix", "Presence")


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(str(node.value))


def _construct_match(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, object]:
    """`!Exact foo` is `{Exact: foo}`."""
    if suffix not in _TAGS:
        raise yaml.constructor.ConstructorError(None, None, f"unknown tag !{suffix}", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        return {suffix: None if suffix == "Presence" and text in ("", "~", "null") else text}
    raise yaml.constructor.ConstructorError(None, None, f"!{suffix} of a mapping", node.start_mark)


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_multi_constructor("!", _construct_match)


def _parse(text: str) -> object:
    try:
        document: object = yaml.load(text, _Loader)  # noqa: S506 - a safe loader's subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigError(f"{where}{error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"not readable as YAML: {error}") from error
    if document is None:
        raise ConfigError("the document is empty; write {} for an empty mesh")
    return document


F = TypeVar("F", _DocumentForm, _DumpForm)


def _convert(document: object, form: type[F]) -> F:
    try:
        return msgspec.convert(document, form)
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


def _document(form: _DocumentForm, *, is_dump: bool) -> MeshDocument:
    services = tuple([_service(each, f"services[{n}]") for n, each in enumerate(form.services)])
    endpoints = {entry.service.key: entry.endpoints for entry in services} if is_dump else None
    workloads = [_workload(each, f"workloads[{n}]", endpoints) for n, each in enumerate(form.workloads)]
    policies = [_policy(each, f"policies[{n}]") for n, each in enumerate(form.policies)]
    return MeshDocument(tuple(workloads), services, tuple(policies))


def _workload(
    form: _WorkloadForm,
    at: str,
    dumped: Mapping[NamespacedHostname, Mapping[str, Endpoint]] | None,
) -> Workload:
    """A workload; `dumped` are the endpoints of a dump, in which workloads list their services only."""
    services: dict[NamespacedHostname, Mapping[int, int]] = {}
    if isinstance(form.services, dict):
        for text, ports in form.services.items():
            services[_hostname(text, f"{at}.services")] = _ports(ports, f"{at}.services[{text}]")
    elif dumped is None:
        raise ConfigError(f"{at}.services: a map of namespace/hostname to ports is required, {{}} for none")
    elif isinstance(form.services, list):
        for n, text in enumerate(form.services):
            key = _hostname(text, f"{at}.services[{n}]")
            endpoint = dumped.get(key, NO_ENDPOINTS).get(form.uid)
            services[key] = {} if endpoint is None else endpoint.ports
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


def _service(form: _ServiceForm, at: str) -> ServiceEntry:
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


def _policy(form: _PolicyForm, at: str) -> Authorization:
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


def _match(form: _MatchForm, at: str) -> Match:
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


def _strings(forms: Sequence[_StringForm], at: str) -> tuple[StringMatch, ...]:
    return tuple([_string(form, f"{at}[{n}]") for n, form in enumerate(forms)])


def _string(form: _StringForm, at: str) -> StringMatch:
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


def _accounts(forms: Sequence[_AccountForm]) -> tuple[ServiceAccountMatch, ...]:
    return tuple([ServiceAccountMatch(form.namespace, form.service_account) for form in forms])


def _networks(texts: Sequence[str], at: str) -> tuple[IPNetwork, ...]:
    return tuple([_cidr(text, f"{at}[{n}]") for n, text in enumerate(texts)])


def _locality(form: _LocalityForm | None) -> Locality:
    return NOWHERE if form is None else Locality(form.region, form.zone, form.subzone)


def _gateway(form: _GatewayForm | None, at: str) -> GatewayAddress | None:
    return None if form is None else _gateway_of(form, at)


def _gateway_of(form: _GatewayForm, at: str) -> GatewayAddress:
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
