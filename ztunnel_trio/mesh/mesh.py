"""The mesh as istiod told it, in memory: three stores that change together.

Theory of operation: resources are decoded and checked off to the side, into entries (`mesh.entries`);
`Mesh.apply` then changes the stores in one synchronous step, which leaves them
consistent. A response may be applied in slices; only its last one says `last`. Lookups give values that
never change; after a change they give others.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.mesh.entries import NO_ENDPOINTS, AddressEntry, PolicyEntry, WorkloadEntry
from ztunnel_trio.mesh.policies import Policies
from ztunnel_trio.mesh.services import Endpoints, Services
from ztunnel_trio.mesh.workloads import Removed, Sketch, Template, Workloads
from ztunnel_trio.model.address import NamespacedHostname, NetworkAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.policy import Authorization
from ztunnel_trio.model.service import Endpoint, Service
from ztunnel_trio.model.workload import Workload, WorkloadInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Changes to apply together: what to put, in order, then what to remove, by resource name.

    `last` is False for all slices of a response but its last one.
    """

    addresses: Sequence[AddressEntry] = ()
    removed_addresses: Sequence[str] = ()
    policies: Sequence[PolicyEntry] = ()
    removed_policies: Sequence[str] = ()
    last: bool = True


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
        self._workloads = Workloads(local_node, self._services.backing)
        self._policies = Policies()

    # change

    def apply(self, batch: Batch) -> Changes:
        """Apply a batch as a whole (ztunnel src/xds.rs). Counts `revision` up if there was anything in it."""
        step = _Step()
        for entry in batch.addresses:
            if isinstance(entry, WorkloadEntry):
                self._put_workload(entry, step)
            else:
                self._services.put(entry.service, entry.endpoints)
                step.services += 1
        for name in batch.removed_addresses:
            self._remove_address(name, step)
        for policy in batch.policies:
            self._policies.put(policy.key, policy.policy)
        removed_policies = [key for key in batch.removed_policies if self._policies.remove(key)]
        if batch.last:
            self._services.end_response()
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

    def _put_workload(self, entry: WorkloadEntry, step: "_Step") -> None:
        uid, _, _, place, _ = entry
        template, old = self._workloads.put(entry)
        is_local = place.node == self.local_node
        if old is None:
            self._add_endpoints(uid, template)
        elif not old.is_same:
            self._replace_endpoints(uid, template, old, step)
        elif not self._confirm(uid, template) and not is_local:
            return
        step.workloads += 1
        if is_local:
            step.put.append(_local_workload(uid, template, place.node))

    def _add_endpoints(self, uid: str, template: Template) -> None:
        for backing, shape in template.backings:
            if template.healthy or backing.takes_unhealthy:
                backing.endpoints[uid] = shape
                backing.memo = None
            else:
                self._services.pass_over(backing, uid, shape)

    def _replace_endpoints(self, uid: str, template: Template, old: Removed, step: "_Step") -> None:
        for backing, _ in old.template.backings:
            self._services.withdraw(backing, uid)
        self._add_endpoints(uid, template)
        self._forsake(old.template)
        if old.is_local and (
            old.template.prototype.authorization_policies != template.prototype.authorization_policies
        ):
            step.attachments = True

    def _confirm(self, uid: str, template: Template) -> bool:
        """Put the endpoints of a workload where its services lost them meanwhile; whether there were any."""
        is_new = False
        for backing, shape in template.backings:
            if not template.healthy and not backing.takes_unhealthy:
                self._services.pass_over(backing, uid, shape)
            elif backing.endpoints.get(uid) is not shape:
                backing.endpoints[uid] = shape
                backing.memo = None
                is_new = True
        return is_new

    def _remove_address(self, name: str, step: "_Step") -> None:
        """Remove what a resource name stands for: a uid, else `namespace/hostname`."""
        gone = self._workloads.remove(name)
        if gone is not None:
            for backing, _ in gone.template.backings:
                self._services.withdraw(backing, name)
            self._forsake(gone.template)
            step.workloads += 1
            if gone.is_local:
                step.gone.append(_local_workload(name, gone.template, gone.place.node))
            return
        try:
            key = NamespacedHostname.parse(name)
        except PeerBrokeProtocol:
            step.notes.append(f"removal of {name}: neither a known workload nor a service name")
            return
        if "/" in key.hostname:
            return  # the uid of a workload we never had
        if self._services.remove(key):
            step.services += 1
        else:
            step.notes.append(f"removal of {name}: no such service")

    def _forsake(self, template: Template) -> None:
        for backing, _ in template.backings:
            if not backing.templates:
                self._services.forsake(backing)

    # lookup

    def workload(self, uid: str) -> Workload | None:
        """The workload of a uid."""
        return self._workloads.get(uid)

    def sketch(self, uid: str) -> Sketch | None:
        """What load balancing compares of a workload, cheaper than the whole."""
        return self._workloads.sketch(uid)

    def workload_at(self, address: NetworkAddress) -> Workload | None:
        """The workload of an address: pods first, then HBONE, then the last to come.

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
        """Every service of a hostname, in store order."""
        return self._services.all_named(hostname)

    def services_of(self, workload: Workload) -> tuple[Service, ...]:
        """The known services a workload backs."""
        found = [self._services.get(key) for key in workload.services]
        return tuple([service for service in found if service is not None])

    def endpoints(self, key: NamespacedHostname) -> Mapping[str, Endpoint]:
        """The endpoints of a service by uid, a live view; empty for a service nobody knows."""
        found = self._services.endpoints(key)
        return NO_ENDPOINTS if found is None else found

    def memo(self, service: Service) -> dict[Hashable, object] | None:
        """Scratch space for what follows from a service and its workloads, emptied when they change.

        None where nothing may be kept: that service is not in the mesh (any more), or a local file gives
        it endpoints, whose workloads do not name it.
        """
        backing = self._services.known_backing(service.key)
        if backing is None or backing.given or backing.service is not service:
            return None
        if backing.memo is None:
            backing.memo = {}
        return backing.memo

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

    def policies(self) -> Iterator[Authorization]:
        """Every policy."""
        return iter(self._policies)

    def staged(self) -> Iterator[tuple[NamespacedHostname, Mapping[str, Endpoint]]]:
        """Endpoints whose service is not known yet."""
        return ((backing.key, Endpoints(backing)) for backing in self._services.staged())


@dataclass(slots=True, eq=False)
class _Step:
    """What `apply` has done so far."""

    workloads: int = 0
    services: int = 0
    put: list[LocalWorkload] = field(default_factory=list)
    gone: list[LocalWorkload] = field(default_factory=list)
    attachments: bool = False
    notes: list[str] = field(default_factory=list)


def _local_workload(uid: str, template: Template, node: str) -> LocalWorkload:
    return LocalWorkload(uid, template.prototype.identity, node, template.wants_certificate)


def _account(identity: SpiffeId) -> tuple[str, str]:
    return identity.namespace, identity.service_account
