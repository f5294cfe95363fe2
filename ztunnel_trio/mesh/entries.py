"""What the mesh is told: checked resources in the parts the stores keep them in.

Whoever hears of the mesh (the discovery stream, a local file) makes entries; the stores know nothing else of
where they came from. Workloads come by the hundred thousand, and those of one deployment differ in uid, name,
addresses, node and locality only: an entry therefore holds those, and refers to the rest as one
`WorkloadKind` for the whole deployment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from ztunnel_trio.model.address import decode_ip
from ztunnel_trio.model.policy import Authorization
from ztunnel_trio.model.service import Endpoint, Service
from ztunnel_trio.model.workload import NOWHERE, Locality, Workload

NO_ENDPOINTS: Final[Mapping[str, Endpoint]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class WorkloadKind:
    """What the workloads of a deployment have in common. Two of the same `key` are the same.

    `prototype` is a workload without what is its own: uid, name, addresses, node, locality.
    """

    key: bytes | Workload
    prototype: Workload


@dataclass(frozen=True, slots=True, eq=False)
class NodeLocality:
    """A node and the locality it lies in. Two of the same `key` are the same: it is hashed without a Python
    call."""

    node: str
    locality: Locality
    key: tuple[str, str, str, str]


class WorkloadEntry(NamedTuple):
    """A checked workload, in the parts it is kept in."""

    uid: str
    name: str
    addresses: tuple[bytes, ...]  # packed, in wire order
    node_locality: NodeLocality
    kind: WorkloadKind


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """A checked service. `endpoints` come from a local file only; istiod names services at the workload."""

    service: Service
    endpoints: Mapping[str, Endpoint] = field(default_factory=lambda: NO_ENDPOINTS, hash=False)


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A checked policy under its resource name, whatever form that has."""

    key: str
    policy: Authorization


AddressEntry = WorkloadEntry | ServiceEntry


def node_locality(node: str, locality: Locality) -> NodeLocality:
    """A node with its locality, and the key they are kept under."""
    return NodeLocality(node, locality, (node, locality.region, locality.zone, locality.subzone))


NO_NODE: Final = node_locality("", NOWHERE)


def workload_entry(workload: Workload) -> WorkloadEntry:
    """The entry of a workload that is known as a value, e.g. from a local file."""
    prototype = build_workload(workload, "", "", (), NO_NODE)
    return WorkloadEntry(
        workload.uid,
        workload.name,
        tuple([ip.packed for ip in workload.addresses]),
        node_locality(workload.node, workload.locality),
        WorkloadKind(prototype, prototype),
    )


def build_workload(
    prototype: Workload, uid: str, name: str, addresses: tuple[bytes, ...], where: NodeLocality
) -> Workload:
    """A prototype with what is a workload's own."""
    return Workload(
        uid=uid,
        name=name,
        addresses=tuple([decode_ip(packed) for packed in addresses]),
        node=where.node,
        locality=where.locality,
        namespace=prototype.namespace,
        service_account=prototype.service_account,
        trust_domain=prototype.trust_domain,
        hostname=prototype.hostname,
        network=prototype.network,
        network_mode=prototype.network_mode,
        network_gateway=prototype.network_gateway,
        protocol=prototype.protocol,
        native_tunnel=prototype.native_tunnel,
        application_tunnel=prototype.application_tunnel,
        waypoint=prototype.waypoint,
        cluster=prototype.cluster,
        health=prototype.health,
        capacity=prototype.capacity,
        workload_name=prototype.workload_name,
        workload_type=prototype.workload_type,
        canonical_name=prototype.canonical_name,
        canonical_revision=prototype.canonical_revision,
        authorization_policies=prototype.authorization_policies,
        services=prototype.services,
    )
