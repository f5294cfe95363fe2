"""Workloads of the discovery stream as entries of the mesh.

Theory of operation: workloads come by the hundred thousand, and those of one deployment differ in uid, name,
addresses, node and locality only. A workload is therefore read *shallowly* (`wire.shallow`): what is its own
is taken out; what is left is serialised again and is the key of a `WorkloadKind`, which is checked and
converted once for the whole deployment. The memory of these conversions is bounded.
"""

from functools import lru_cache
from types import MappingProxyType
from typing import Final

from google.protobuf import wrappers_pb2

from ztunnel_trio.facts.network import DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN
from ztunnel_trio.mesh.entries import NodeLocality, WorkloadEntry, WorkloadKind, node_locality
from ztunnel_trio.model.address import NamespacedHostname
from ztunnel_trio.model.workload import (
    NO_SERVICES,
    ApplicationTunnel,
    AppTunnelProtocol,
    Health,
    InboundProtocol,
    Locality,
    NetworkMode,
    Workload,
)
from ztunnel_trio.pb import workload_pb2
from ztunnel_trio.wire.shallow import OwnWorkload, parse_services_entry, parse_workload
from ztunnel_trio.xds.fields import (
    PIECES_KEPT,
    FieldRefused,
    Ports,
    gateway,
    hostname_of,
    ip_of,
    known,
    one,
    ports_of,
)

KINDS_KEPT: Final = 16384  # about one a deployment

_INBOUND: Final = {0: InboundProtocol.TCP, 1: InboundProtocol.HBONE}
_LEGACY_MTLS: Final = 2
_HEALTH: Final = {0: Health.HEALTHY, 1: Health.UNHEALTHY}
_NETWORK_MODES: Final = {0: NetworkMode.STANDARD, 1: NetworkMode.HOST_NETWORK}
_APP_TUNNELS: Final = {0: AppTunnelProtocol.NONE, 1: AppTunnelProtocol.PROXY}
_WORKLOAD_TYPES: Final = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}


def workload_entry_of(resource_name: str, message: OwnWorkload) -> WorkloadEntry:
    """Take a workload apart; the message is used up.

    Raises:
        FieldRefused: one of its fields.
    """
    uid = message.uid
    if uid == resource_name:
        uid = resource_name  # one copy of a string that is kept by name and by uid
    name = message.name
    addresses = tuple(message.addresses[:])  # a slice is copied faster than it is iterated
    for packed in addresses:
        if len(packed) != 4 and len(packed) != 16:
            ip_of("addresses", packed)  # raises
    where = _node_locality(message.node, message.locality)
    clear = message.ClearField
    clear("uid")  # every field of OWN_FIELDS
    clear("name")
    clear("addresses")
    clear("node")
    clear("locality")
    clear("extensions")
    kind = _kind(message.SerializeToString())
    return tuple.__new__(WorkloadEntry, (uid, name, addresses, where, kind))  # a third of its __new__


@lru_cache(PIECES_KEPT)
def _node_locality(node: str, locality: bytes) -> NodeLocality:
    """One copy of a node's name and its locality."""
    message = workload_pb2.Locality.FromString(locality)
    return node_locality(node, _one_locality(Locality(message.region, message.zone, message.subzone)))


@lru_cache(PIECES_KEPT)
def _one_locality(locality: Locality) -> Locality:
    return locality


@lru_cache(KINDS_KEPT)
def _kind(key: bytes) -> WorkloadKind:
    """Check and convert what is left of a workload without what is its own."""
    message = parse_workload(key)
    if message.tunnel_protocol == _LEGACY_MTLS:
        raise FieldRefused("tunnel_protocol", "unknown enum: unsupported tunnel protocol: legacy istio mtls")
    return WorkloadKind(
        key,
        Workload(
            namespace=one(message.namespace),
            service_account=one(message.service_account or DEFAULT_SERVICE_ACCOUNT),
            trust_domain=one(message.trust_domain or DEFAULT_TRUST_DOMAIN),
            hostname=message.hostname,
            network=one(message.network),
            network_mode=known("network_mode", _NETWORK_MODES, message.network_mode),
            network_gateway=gateway("network_gateway", message.network_gateway)
            if message.HasField("network_gateway")
            else None,
            protocol=known("tunnel_protocol", _INBOUND, message.tunnel_protocol),
            native_tunnel=message.native_tunnel,
            application_tunnel=(
                _application_tunnel(message.application_tunnel)
                if message.HasField("application_tunnel")
                else None
            ),
            waypoint=gateway("waypoint", message.waypoint) if message.HasField("waypoint") else None,
            cluster=one(message.cluster_id or DEFAULT_CLUSTER),
            health=known("status", _HEALTH, message.status),
            capacity=_capacity(message.capacity) if message.HasField("capacity") else 1,
            workload_name=one(message.workload_name),
            workload_type=_WORKLOAD_TYPES.get(message.workload_type, _WORKLOAD_TYPES[0]),
            canonical_name=one(message.canonical_name),
            canonical_revision=one(message.canonical_revision),
            authorization_policies=tuple([one(policy) for policy in message.authorization_policies]),
            services=MappingProxyType(dict([_service_of_workload(entry) for entry in message.services]))
            if message.services
            else NO_SERVICES,
        ),
    )


@lru_cache(PIECES_KEPT)
def _service_of_workload(entry: bytes) -> tuple[NamespacedHostname, Ports]:
    message = parse_services_entry(entry)
    return hostname_of("services", message.key), _port_list(message.value)


@lru_cache(PIECES_KEPT)
def _port_list(message: bytes) -> Ports:
    return ports_of(
        tuple([(p.service_port, p.target_port) for p in workload_pb2.PortList.FromString(message).ports])
    )


@lru_cache(256)
def _application_tunnel(data: bytes) -> ApplicationTunnel:
    message = workload_pb2.ApplicationTunnel.FromString(data)
    return ApplicationTunnel(
        known("application_tunnel.protocol", _APP_TUNNELS, message.protocol), message.port & 0xFFFF or None
    )


def _capacity(data: bytes) -> int:
    return wrappers_pb2.UInt32Value.FromString(data).value
