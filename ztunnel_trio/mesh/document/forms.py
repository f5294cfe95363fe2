"""The objects a local file may hold, as they stand there; `local` makes values of them."""

from typing import Annotated

import msgspec

from ztunnel_trio.model.policy import (
    Action,
    PolicyScope,
)
from ztunnel_trio.model.service import (
    HealthPolicy,
    IPFamilies,
    LoadBalancingMode,
    Scope,
    Visibility,
)
from ztunnel_trio.model.workload import (
    AppTunnelProtocol,
    Health,
    InboundProtocol,
    NetworkMode,
)

PortNumber = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Number = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
PortMap = dict[int | str, PortNumber]


class Form(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """An object with no other keys than these."""


class GatewayForm(Form, frozen=True):
    destination: str
    hbone_mtls_port: PortNumber


class ApplicationTunnelForm(Form, frozen=True):
    protocol: AppTunnelProtocol
    port: PortNumber | None = None


class LocalityForm(msgspec.Struct, frozen=True):
    region: str
    zone: str
    subzone: str


class WorkloadForm(Form, frozen=True):
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
    waypoint: GatewayForm | None = None
    network_gateway: GatewayForm | None = None
    workload_name: str = ""
    workload_type: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    hostname: str = ""
    node: str = ""
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnelForm | None = None
    authorization_policies: list[str] = []
    status: Health = Health.HEALTHY
    cluster_id: str = ""
    locality: LocalityForm | None = None
    capacity: Number = 1


class EndpointForm(Form, frozen=True):
    workload_uid: str
    port: PortMap
    status: Health


class CidrForm(Form, frozen=True):
    network: str
    cidr: str


class WeightedForm(Form, frozen=True):
    destination: GatewayForm
    weight: Number


class BalancerForm(Form, frozen=True):
    routing_preferences: list[Scope]
    mode: LoadBalancingMode
    health_policy: HealthPolicy


class ServiceForm(Form, frozen=True):
    name: str
    namespace: str
    hostname: str
    vips: list[str]
    ports: PortMap
    cidr_vips: list[CidrForm] = []
    endpoints: dict[str, EndpointForm] = {}
    subject_alt_names: list[str] = []
    waypoint: GatewayForm | None = None
    weighted_waypoints: list[WeightedForm] = []
    load_balancer: BalancerForm | None = None
    ip_families: IPFamilies | None = None
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC


class StringForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    exact: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Exact")
    prefix: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Prefix")
    suffix: str | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="Suffix")
    presence: list[str] | msgspec.UnsetType | None = msgspec.field(default=msgspec.UNSET, name="Presence")


class AccountForm(Form, frozen=True):
    namespace: str
    service_account: str


class MatchForm(msgspec.Struct, frozen=True, rename="camel"):
    namespaces: list[StringForm] = []
    not_namespaces: list[StringForm] = []
    service_accounts: list[AccountForm] = []
    not_service_accounts: list[AccountForm] = []
    principals: list[StringForm] = []
    not_principals: list[StringForm] = []
    source_ips: list[str] = []
    not_source_ips: list[str] = []
    destination_ips: list[str] = []
    not_destination_ips: list[str] = []
    destination_ports: list[PortNumber] = []
    not_destination_ports: list[PortNumber] = []


class PolicyForm(Form, frozen=True):
    name: str
    namespace: str
    scope: PolicyScope
    action: Action
    dry_run: bool
    rules: list[list[list[MatchForm]]]


class DocumentForm(Form, frozen=True):
    workloads: list[WorkloadForm] = []
    policies: list[PolicyForm] = []
    services: list[ServiceForm] = []
