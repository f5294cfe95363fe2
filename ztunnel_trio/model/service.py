"""Services, their endpoints and how one is chosen (workload.proto, Service)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import Final

from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.workload import GatewayAddress, Health

NO_PORTS: Final[Mapping[int, int]] = MappingProxyType({})


class Scope(Enum):
    """A locality attribute compared between client and endpoint."""

    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


class LoadBalancingMode(Enum):
    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class HealthPolicy(Enum):
    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class IPFamilies(Enum):
    DUAL = "Dual"
    IPV4 = "IPv4"
    IPV6 = "IPv6"


class Visibility(Enum):
    PUBLIC = "Public"
    NAMESPACE = "Namespace"


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    routing_preferences: tuple[Scope, ...]
    mode: LoadBalancingMode
    health_policy: HealthPolicy


@dataclass(frozen=True, slots=True)
class NetworkCidr:
    """A range of VIPs on a named network; host bits are already masked."""

    network: str
    cidr: IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class WeightedWaypoint:
    destination: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload as one service sees it; its `ports` (service to target port) win over the service's."""

    workload_uid: str
    ports: Mapping[int, int] = field(hash=False)
    health: Health = Health.HEALTHY


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service, without its endpoints: the mesh keeps those (`Mesh.endpoints`).

    `ports` maps service port to target port; target 0 is a named port, looked up at the endpoint.
    """

    name: str = ""
    namespace: str = ""
    hostname: str = ""
    vips: tuple[NetworkAddress, ...] = ()
    cidr_vips: tuple[NetworkCidr, ...] = ()
    ports: Mapping[int, int] = field(default_factory=lambda: NO_PORTS, hash=False)
    subject_alt_names: tuple[str, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancer: LoadBalancer | None = None
    ip_families: IPFamilies | None = None  # None: automatic, no restriction
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> NamespacedHostname:
        return NamespacedHostname(self.namespace, self.hostname)

    @property
    def allows_unhealthy(self) -> bool:
        return self.load_balancer is not None and self.load_balancer.health_policy is HealthPolicy.ALLOW_ALL

    def is_visible_to(self, client_namespace: str | None) -> bool:
        """Whether a client of that namespace may use it; None: nobody in particular asks, so yes."""
        return (
            self.visibility is Visibility.PUBLIC
            or client_namespace is None
            or client_namespace == self.namespace
        )
