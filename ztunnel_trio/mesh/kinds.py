"""Kinds of workloads as the store knows them: what a deployment shares, and the services it names."""

from collections.abc import Callable
from typing import NamedTuple

from ztunnel_trio.mesh.endpoints import ServiceEndpoints, endpoint_ports
from ztunnel_trio.mesh.entries import NodeLocality, WorkloadKind
from ztunnel_trio.model.address import NamespacedHostname
from ztunnel_trio.model.workload import Health, InboundProtocol, NetworkMode, Workload


class KnownKind:
    """A kind of workloads the store has some of: what is asked of it often, and the services it names."""

    __slots__ = (
        "account",
        "endpoints",
        "healthy",
        "hostname",
        "indexed",
        "network",
        "prototype",
        "rank",
        "wants_certificate",
    )

    def __init__(
        self, kind: WorkloadKind, endpoints: Callable[[NamespacedHostname], ServiceEndpoints]
    ) -> None:
        prototype = kind.prototype
        hbone = prototype.protocol is InboundProtocol.HBONE
        self.prototype = prototype
        self.network, self.hostname = prototype.network, prototype.hostname
        self.account = (prototype.namespace, prototype.service_account)
        self.indexed = prototype.network_mode is not NetworkMode.HOST_NETWORK
        self.healthy = prototype.health is Health.HEALTHY
        self.rank = 1 if hbone else 0
        self.wants_certificate = hbone or prototype.native_tunnel
        self.endpoints = tuple(
            [
                (endpoints(key), endpoint_ports(ports, prototype.health))
                for key, ports in prototype.services.items()
            ]
        )
        for one, _ in self.endpoints:
            one.kinds += 1

    def add_endpoint(self, uid: str) -> None:
        """A workload of this kind names its services."""
        for one, ports in self.endpoints:
            one.named_by[uid] = ports
            one.version += 1
        if not self.healthy:
            for one, _ in self.endpoints:
                one.unhealthy += 1

    def withdraw_endpoint(self, uid: str) -> None:
        """It does no more."""
        for one, _ in self.endpoints:
            del one.named_by[uid]
            one.version += 1
        if not self.healthy:
            for one, _ in self.endpoints:
                one.unhealthy -= 1


class BalancingFacts(NamedTuple):
    """What load balancing asks of a workload, without making the whole value."""

    prototype: Workload  # uid, name, addresses, node and locality are not its
    node_locality: NodeLocality
    has_addresses: bool
