"""Workloads: pods, VMs, external endpoints and gateways, as istiod describes them (workload.proto)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from ztunnel_trio.facts.network import DEFAULT_CLUSTER, DEFAULT_SERVICE_ACCOUNT, DEFAULT_TRUST_DOMAIN
from ztunnel_trio.model.address import IPAddress, NamespacedHostname, NetworkAddress
from ztunnel_trio.model.identity import SpiffeId


class InboundProtocol(Enum):
    """What a workload accepts; the values are the names in dumps and local files."""

    TCP = "TCP"
    HBONE = "HBONE"


class OutboundProtocol(Enum):
    """How a connection leaves its pod; the values are the names in dumps."""

    TCP = "TCP"
    HBONE = "HBONE"
    DOUBLE_HBONE = "DOUBLEHBONE"


class NetworkMode(Enum):
    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"  # the address is shared: never index the workload by it


class Health(Enum):
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class AppTunnelProtocol(Enum):
    NONE = "NONE"
    PROXY = "PROXY"  # a PROXY v2 header is prepended


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """How a sandwiched proxy wants its traffic. `port` None: keep the port asked for."""

    protocol: AppTunnelProtocol
    port: int | None


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""


NOWHERE: Final = Locality()
NO_SERVICES: Final[Mapping[NamespacedHostname, Mapping[int, int]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where a waypoint or network gateway is: by address or by name, and its HBONE port."""

    destination: NetworkAddress | NamespacedHostname
    hbone_mtls_port: int


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """What the CNI agent knows of a pod; the key under which its own record is looked up."""

    name: str
    namespace: str
    service_account: str

    def __str__(self) -> str:
        return f"{self.service_account}.{self.namespace} ({self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One endpoint of the mesh. `services` maps each service it backs to its {service port: target port}."""

    uid: str = ""
    name: str = ""
    namespace: str = ""
    service_account: str = DEFAULT_SERVICE_ACCOUNT
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    addresses: tuple[IPAddress, ...] = ()
    hostname: str = ""
    network: str = ""
    network_mode: NetworkMode = NetworkMode.STANDARD
    network_gateway: GatewayAddress | None = None
    protocol: InboundProtocol = InboundProtocol.TCP
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    waypoint: GatewayAddress | None = None
    node: str = ""
    cluster: str = DEFAULT_CLUSTER
    locality: Locality = NOWHERE
    health: Health = Health.HEALTHY
    capacity: int = 1  # load-balancing weight; 0 is never drawn
    workload_name: str = ""
    workload_type: str = "deployment"
    canonical_name: str = ""
    canonical_revision: str = ""
    authorization_policies: tuple[str, ...] = ()  # keys `namespace/name` of selector policies
    services: Mapping[NamespacedHostname, Mapping[int, int]] = field(
        default_factory=lambda: NO_SERVICES, hash=False
    )

    @property
    def identity(self) -> SpiffeId:
        return _identity(self.trust_domain, self.namespace, self.service_account)

    @property
    def info(self) -> WorkloadInfo:
        return WorkloadInfo(self.name, self.namespace, self.service_account)

    def __str__(self) -> str:
        return f"Workload{{{self.name} with uid {self.uid} ({self.protocol.value})}}"


@lru_cache(maxsize=4096)  # each connection asks for two, and keeps them
def _identity(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    return SpiffeId(trust_domain, namespace, service_account)
