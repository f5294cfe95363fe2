"""The mesh as istiod told it, in memory: three stores that change together.

Theory of operation: resources are decoded and checked off to the side, into entries (`mesh.entries`);
`Mesh.apply` then changes the stores in one synchronous step, which leaves them consistent. What they answer
depends on what was said last of each resource, and on nothing that was there before. Lookups give values that
never change; after a change they give others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.mesh.clashes import Clash
from ztunnel_trio.mesh.endpoints import Endpoints
from ztunnel_trio.mesh.entries import NO_ENDPOINTS, AddressEntry, PolicyEntry, WorkloadEntry
from ztunnel_trio.mesh.kinds import BalancingFacts, KnownKind
from ztunnel_trio.mesh.policies import Policies
from ztunnel_trio.mesh.services import Services
from ztunnel_trio.mesh.workloads import Workloads
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.policy import Authorization
from ztunnel_trio.model.service import Endpoint, Service
from ztunnel_trio.model.workload import Workload, WorkloadInfo

CLASHES_TOLD: Final = 10  # of one batch; the dump has them all


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Changes to apply together: what to put, in order, then what to remove, by resource name."""

    addresses: Sequence[AddressEntry] = ()
    removed_addresses: Sequence[str] = ()
    policies: Sequence[PolicyEntry] = ()
    removed_policies: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class LocalWorkload:
    """A workload of this node that came, changed or went."""

    uid: str
    identity: SpiffeId
    node: str
    wants_certificate: bool  # it accepts HBONE, by us or by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a batch changed.

    `put` are this node's workloads that came or changed; `forgotten` those that went and left no workload
    of their account on this node. Without a node name of ours nothing is reported as `put`.
    `attachments`: a workload of this node has other policies attached than before.
    """

    workloads: int = 0
    services: int = 0
    put: tuple[LocalWorkload, ...] = ()
    forgotten: tuple[LocalWorkload, ...] = ()
    policies: bool = False
    attachments: bool = False
    notes: tuple[str, ...] = ()  # what to warn of

    @property
    def addresses(self) -> bool:
        """Whether any workload or service changed."""
        return self.workloads + self.services > 0


class Mesh:
    """All workloads, services and policies. `local_node` None: every workload counts as of this node."""

    def __init__(self, *, local_node: str | None = None) -> None:
        self.local_node = local_node
        self.revision = 0
        self._services = Services()
        self._workloads = Workloads(local_node, self._services.mentioned, self._services.forget_unmentioned)
        self._policies = Policies()

    # change

    def apply(self, batch: Batch) -> Changes:
        """Apply a batch as a whole (ztunnel src/xds.rs). Counts `revision` up if there was anything in it."""
        step = _Step(self._workloads, self._services)
        for entry in batch.addresses:
            if isinstance(entry, WorkloadEntry):
                step.put_workload(entry, self.local_node)
            else:
                self._services.put(entry.service, entry.endpoints)
                step.services += 1
        for name in batch.removed_addresses:
            step.remove_address(name)
        for policy in batch.policies:
            self._policies.put(policy.key, policy.policy)
        removed_policies = [key for key in batch.removed_policies if self._policies.remove(key)]
        step.tell_clashes()
        changes = Changes(
            workloads=step.workloads,
            services=step.services,
            put=tuple(step.put),
            forgotten=tuple(
                [gone for gone in step.gone if not self.has_local_identity(*_account(gone.identity))]
            ),
            policies=bool(batch.policies or removed_policies),
            attachments=step.attachments,
            notes=tuple(step.notes),
        )
        if changes.addresses or changes.policies:
            self.revision += 1
        return changes

    # lookup

    def workload(self, uid: str) -> Workload | None:
        """The workload of a uid."""
        return self._workloads.get(uid)

    def balancing_facts(self, uid: str) -> BalancingFacts | None:
        """What load balancing compares of a workload, cheaper than the whole."""
        return self._workloads.balancing_facts(uid)

    def workload_at(self, address: NetworkAddress) -> Workload | None:
        """The workload of an address: pods first, then HBONE, then the smallest uid.

        Never one of the host network, whose address is the node's.
        """
        return self._workloads.at(address)

    def local_workload(self, info: WorkloadInfo) -> Workload | None:
        """The workload on this node of that name, namespace and account."""
        return self._workloads.local(info)

    def workload_by_hostname(self, host: NamespacedHostname) -> Workload | None:
        """A workload known by a hostname, in that namespace."""
        return self._workloads.by_hostname(host)

    def has_local_identity(self, namespace: str, service_account: str) -> bool:
        """Whether any workload on this node runs under that account, whatever its trust domain."""
        return self._workloads.has_local_account((namespace, service_account))

    def service(self, key: NamespacedHostname) -> Service | None:
        """The service of that key; who may see it is not asked."""
        return self._services.get(key)

    def service_at(self, address: NetworkAddress, client_namespace: str | None) -> Service | None:
        """The best service of an address that a client of that namespace may see (None: anybody's)."""
        return self._services.at(address, client_namespace)

    def service_named(
        self, hostname: str, client_namespace: str | None, preferred_namespace: str | None = None
    ) -> Service | None:
        """The best service of a hostname that a client of that namespace may see (None: anybody's)."""
        return self._services.named(hostname, client_namespace, preferred_namespace)

    def services_named(self, hostname: str) -> Sequence[Service]:
        """Every service of a hostname, in the order of their names (`services.best`)."""
        return self._services.all_named(hostname)

    def services_of(self, workload: Workload) -> tuple[Service, ...]:
        """The known services a workload backs."""
        found = [self._services.get(key) for key in workload.services]
        return tuple([service for service in found if service is not None])

    def wildcard_labels(self) -> Sequence[int]:
        """How many labels the hostnames `*.…` of services have behind the star, most first, each once."""
        return self._services.wildcard_labels()

    def endpoints(self, key: NamespacedHostname) -> Mapping[str, Endpoint]:
        """The endpoints of a service by uid, a live view; empty for a service nobody knows."""
        found = self._services.known(key)
        return NO_ENDPOINTS if found is None else Endpoints(found)

    def endpoints_version(self, service: Service) -> int | None:
        """A number that is another one after each change of a service or its endpoints.

        None where changes are not seen: that service is not in the mesh (any more), or a local file gives it
        endpoints, whose workloads do not name it.
        """
        found = self._services.known(service.key)
        if found is None or found.listed or found.service is not service:
            return None
        return found.version

    def policies_for(self, workload: Workload) -> tuple[list[Authorization], list[str]]:
        """The policies of a workload: mesh-wide, its namespace's, those attached; and the attached keys
        nobody knows."""
        return self._policies.of_workload(workload)

    def policy(self, key: str) -> Authorization | None:
        """The policy of a resource name."""
        return self._policies.get(key)

    # for dumps

    def workloads(self) -> Iterator[Workload]:
        """Every workload, made anew. Changes to the mesh end the iteration with RuntimeError."""
        for uid in self._workloads:
            workload = self._workloads.build(uid)
            if workload is not None:
                yield workload

    def uids(self) -> list[str]:
        """The uid of every workload."""
        return list(self._workloads)

    def services(self) -> Iterator[Service]:
        """Every service."""
        return iter(self._services)

    def policy_keys(self) -> list[str]:
        """The resource name of every policy."""
        return list(self._policies)

    def without_service(self) -> Iterator[tuple[NamespacedHostname, Mapping[str, Endpoint]]]:
        """Endpoints whose service is not known."""
        return self._services.unknown()

    def service_clashes(self) -> list[Clash]:
        """The VIPs that several services claim."""
        return list(self._services.clashes)

    def workload_clashes(self) -> list[Clash]:
        """The addresses that several workloads claim."""
        return list(self._workloads.clashes)


@dataclass(slots=True, eq=False)
class _Step:
    """One batch on its way into the stores, and what it has changed so far."""

    workload_store: Workloads
    service_store: Services
    workloads: int = 0
    services: int = 0
    put: list[LocalWorkload] = field(default_factory=list)
    gone: list[LocalWorkload] = field(default_factory=list)
    attachments: bool = False
    notes: list[str] = field(default_factory=list)

    def put_workload(self, entry: WorkloadEntry, local_node: str | None) -> None:
        """Take a workload as it is said to be now."""
        where = entry[3]
        kind, replaced = self.workload_store.put(entry)
        is_local = where.node == local_node
        if replaced is not None:
            if replaced.is_same and not is_local:
                return
            if replaced.is_local and (
                replaced.kind.prototype.authorization_policies != kind.prototype.authorization_policies
            ):
                self.attachments = True
        self.workloads += 1
        if is_local:
            self.put.append(_local_workload(entry[0], kind, where.node))

    def remove_address(self, name: str) -> None:
        """Remove what a resource name stands for: a uid, else `namespace/hostname`."""
        gone = self.workload_store.remove(name)
        if gone is not None:
            self.workloads += 1
            if gone.is_local:
                self.gone.append(_local_workload(name, gone.kind, gone.node_locality.node))
            return
        try:
            key = NamespacedHostname.parse(name)
        except PeerBrokeProtocol:
            self.notes.append(f"removal of {name}: neither a known workload nor a service name")
            return
        if "/" in key.hostname:
            return  # the uid of a workload we never had
        if self.service_store.remove(key):
            self.services += 1
        else:
            self.notes.append(f"removal of {name}: no such service")

    def tell_clashes(self) -> None:
        """Note the addresses more are claiming than before; of two workloads only where the uid decides."""
        found = self.service_store.clashes.news()
        found += [
            clash
            for clash in self.workload_store.clashes.news()
            if self.workload_store.is_clash_decided_by_uid(clash.claimants)
        ]
        self.notes += [str(clash) for clash in found[:CLASHES_TOLD]]
        if len(found) > CLASHES_TOLD:
            self.notes.append(
                f"{len(found) - CLASHES_TOLD} more addresses are claimed by several: see the dump"
            )


def _local_workload(uid: str, kind: KnownKind, node: str) -> LocalWorkload:
    return LocalWorkload(uid, kind.prototype.identity, node, kind.wants_certificate)


def _account(identity: SpiffeId) -> tuple[str, str]:
    return identity.namespace, identity.service_account
