"""Does the mesh own a DNS name, and what does it answer (ztunnel src/dns/server.rs).

A question is tried under several names, its *aliases*: as asked, as Kubernetes would complete a short name,
and, for a name a pod's resolver has completed from its search list, without that suffix again. Each alias is
tried exactly and then under ever wider wildcards. The first service found ends the search; a name nobody
owns is for the cluster's resolver.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from ztunnel_trio.mesh.services import best
from ztunnel_trio.model.address import IPAddress, NamespacedHostname
from ztunnel_trio.model.service import Endpoint, IPFamilies, Service
from ztunnel_trio.model.workload import Health, Workload

Name = tuple[str, ...]
"""Lower-case labels, leftmost first, without the root."""


class NamedServices(Protocol):
    """What the mesh is asked for here."""

    def services_named(self, hostname: str) -> Sequence[Service]:
        """Every service of that hostname, in the order of their names."""
        ...

    def endpoints(self, key: NamespacedHostname) -> Mapping[str, Endpoint]:
        """The endpoints of a service, by workload uid."""
        ...

    def workload(self, uid: str) -> Workload | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NameSettings:
    """How names are read. `search` None: the three domains Kubernetes gives every pod, by its namespace."""

    cluster_domain: str = "cluster.local"
    search: tuple[str, ...] | None = None
    preferred_namespace: str | None = None
    ipv6: bool = True


class NoAddress(Enum):
    """Why an owned name has no address of the family asked for; the values are the words of the DNS log."""

    OTHER_FAMILY = "service does not support this record type"
    NONE = "no records"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The mesh's answer, never empty. `alias_of`: what the name asked for is a CNAME of, as labels."""

    addresses: tuple[IPAddress, ...]
    alias_of: Name | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Empty:
    """The mesh owns the name and has no such record: no error, no records."""

    why: NoAddress
    notes: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Forward:
    """Not the mesh's: ask the resolver upstream."""

    notes: tuple[str, ...] = field(default=(), compare=False)


Verdict = Addresses | Empty | Forward


@dataclass(frozen=True, slots=True)
class Alias:
    """A name to try; `stripped` is what was left of the question without its search domain, or None."""

    name: Name
    stripped: Name | None = None


def kubernetes_names(name: Name, namespace: str, cluster_domain: Name) -> list[Name]:
    """What a short name may stand for, in the order Kubernetes' own search list would try it."""
    services = ("svc", *cluster_domain)
    match name:
        case (_,):
            return [(*name, namespace, *services)]
        case (_, _):
            return [(*name, *services), (*name, namespace, *services)]
        case (_, _, "svc"):
            return [(*name, *cluster_domain), (*name, *services)]
        case (_, _, _):
            return [(*name, *services)]
        case (_, _, _, "svc"):
            return [(*name, *cluster_domain)]
        case _:
            return []


def without_domain(name: Name, domain: Name) -> Name | None:
    """`name` without the domain it lies in; None if it lies elsewhere or is the domain itself."""
    if len(name) <= len(domain) or not domain or domain[0] == "*" or name[-len(domain) :] != domain:
        return None
    return name[: -len(domain)]


def aliases(name: Name, namespace: str, cluster_domain: Name, search: Sequence[Name]) -> list[Alias]:
    """Every name to try for a question, best first, each once."""
    found = {name: Alias(name)}
    for completed in kubernetes_names(name, namespace, cluster_domain):
        found.setdefault(completed, Alias(completed))
    for domain in search:
        stripped = without_domain(name, domain)
        if stripped is not None:
            for tried in (stripped, *kubernetes_names(stripped, namespace, cluster_domain)):
                found.setdefault(tried, Alias(tried, stripped))
    return list(found.values())


def with_wildcards(name: Name) -> Iterator[Name]:
    """The name, then the wildcards it falls under, narrowest first."""
    yield name
    for start in range(1, len(name)):
        yield ("*", *name[start:])


def search_domains(namespace: str, settings: NameSettings) -> list[Name]:
    """The domains a client's resolver appends to short names."""
    if settings.search is not None:
        return [_labels(domain) for domain in settings.search]
    cluster = _labels(settings.cluster_domain)
    return [(namespace, "svc", *cluster), ("svc", *cluster), cluster]


def answer(
    name: Name, *, version: int, client: Workload, mesh: NamedServices, settings: NameSettings
) -> Verdict:
    """What `client` is told about the addresses of IP `version` 4 or 6 of a name."""
    cluster = _labels(settings.cluster_domain)
    notes: list[str] = []
    for alias in aliases(name, client.namespace, cluster, search_domains(client.namespace, settings)):
        for tried in with_wildcards(alias.name):
            service = _owner(".".join(tried), client.namespace, mesh, settings, notes)
            if service is None:
                continue
            if not _has_family(service, version, settings):
                return Empty(NoAddress.OTHER_FAMILY, tuple(notes))
            addresses = _addresses(service, version, client.network, mesh)
            if not addresses:
                return Empty(NoAddress.NONE, tuple(notes))
            alias_of = None if service.hostname.startswith("*.") else alias.stripped
            return Addresses(addresses, alias_of, tuple(notes))
    return Forward(tuple(notes))


def _labels(domain: str) -> Name:
    return tuple(domain.lower().strip(".").split("."))


def _owner(
    hostname: str, namespace: str, mesh: NamedServices, settings: NameSettings, notes: list[str]
) -> Service | None:
    """The service that answers for a hostname: with VIPs or of Kubernetes' headless kind, and visible."""
    candidates = []
    for service in mesh.services_named(hostname):
        if not service.vips and not service.hostname.endswith(f".svc.{settings.cluster_domain}"):
            continue  # the endpoints of a foreign name are the upstream resolver's business
        if not service.is_visible_to(namespace):
            notes.append(f"service {service.key} is not visible to namespace {namespace}")
            continue
        candidates.append(service)
    return best(candidates, namespace, settings.preferred_namespace)


def _has_family(service: Service, version: int, settings: NameSettings) -> bool:
    if version == 6:
        return settings.ipv6 and service.ip_families is not IPFamilies.IPV4
    return service.ip_families is not IPFamilies.IPV6


def _addresses(service: Service, version: int, network: str, mesh: NamedServices) -> tuple[IPAddress, ...]:
    """The VIPs on the client's network; for a headless service one address of each of its workloads."""
    if service.vips:
        return tuple(vip.ip for vip in service.vips if vip.network == network and vip.ip.version == version)
    found: list[IPAddress] = []
    for uid, endpoint in mesh.endpoints(service.key).items():
        if endpoint.health is not Health.HEALTHY and not service.allows_unhealthy:
            continue
        workload = mesh.workload(uid)
        if workload is not None:
            found.extend([ip for ip in workload.addresses if ip.version == version][:1])
    return tuple(found)
