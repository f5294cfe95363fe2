"""Does the mesh own a DNS name, and what does it answer (ztunnel src/dns/server.rs).

A question is tried under several names, its *aliases*: as asked, as Kubernetes would complete a short name,
and, for a name a pod's resolver has completed from its search list, without that suffix again. Each alias is
tried exactly and then under ever wider wildcards. The first service found ends the search; a name nobody
owns is for the cluster's resolver, but for `localhost` and what is below it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from ztunnel_trio.mesh.services import best
from ztunnel_trio.model.address import IPAddress, NamespacedHostname
from ztunnel_trio.model.service import Endpoint, IPFamilies, Service
from ztunnel_trio.model.workload import Health, Workload

LOOPBACK: Final[Mapping[int, IPAddress]] = MappingProxyType(
    {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}
)


class NamedServices(Protocol):
    """What the mesh is asked for here."""

    def services_named(self, hostname: str) -> Sequence[Service]:
        """Every service of that hostname, in the order of their names."""
        ...

    def wildcard_labels(self) -> Sequence[int]:
        """How many labels the hostnames `*.…` have behind the star, most first, each once."""
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
    """The mesh's answer, never empty. `alias_of`: what the name asked for is a CNAME of."""

    addresses: tuple[IPAddress, ...]
    alias_of: str | None = None
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


class Alias(NamedTuple):
    """A name to try; `stripped` is what was left of the question without its search domain, or None."""

    name: str
    stripped: str | None = None


def kubernetes_names(name: str, namespace: str, cluster_domain: str) -> list[str]:
    """What a short name may stand for, in the order Kubernetes' own search list would try it."""
    dots = name.count(".")
    if not name or dots > 3:
        return []
    is_service = name.endswith(".svc")
    services = f"svc.{cluster_domain}"
    match dots:
        case 0:
            return [f"{name}.{namespace}.{services}"]
        case 1:
            return [f"{name}.{services}", f"{name}.{namespace}.{services}"]
        case 2 if is_service:
            return [f"{name}.{cluster_domain}", f"{name}.{services}"]
        case 2:
            return [f"{name}.{services}"]
        case _:
            return [f"{name}.{cluster_domain}"] if is_service else []


def without_domain(name: str, domain: str) -> str | None:
    """`name` without the domain it lies in; None if it lies elsewhere or is the domain itself."""
    if not domain or domain[0] == "*" or not name.endswith(domain):
        return None
    rest = name[: -len(domain)]
    return rest[:-1] if len(rest) > 1 and rest[-1] == "." else None


def aliases(name: str, namespace: str, cluster_domain: str, search: Sequence[str]) -> Iterator[Alias]:
    """Every name to try for a question, best first, each once."""
    found = {name}
    yield Alias(name)
    for completed in kubernetes_names(name, namespace, cluster_domain):
        if completed not in found:
            found.add(completed)
            yield Alias(completed)
    for domain in search:
        stripped = without_domain(name, domain)
        if stripped is not None:
            for tried in (stripped, *kubernetes_names(stripped, namespace, cluster_domain)):
                if tried not in found:
                    found.add(tried)
                    yield Alias(tried, stripped)


def with_wildcards(name: str, wildcard_labels: Sequence[int]) -> Iterator[str]:
    """The name, then the wildcards it falls under, narrowest first: those of as many labels as there are any.

    `wildcard_labels` says how many labels the wildcards that exist have behind their star, most first.
    """
    yield name
    for count in wildcard_labels:
        beginning, *rest = name.rsplit(".", count)
        if len(rest) == count and beginning:
            yield f"*{name[len(beginning) :]}"


@lru_cache(maxsize=1024)
def search_domains(namespace: str, settings: NameSettings) -> tuple[str, ...]:
    """The domains a client's resolver appends to short names."""
    if settings.search is not None:
        return tuple([_plain(domain) for domain in settings.search])
    cluster = _plain(settings.cluster_domain)
    return f"{namespace}.svc.{cluster}", f"svc.{cluster}", cluster


def is_localhost(name: str) -> bool:
    """Whether a name is `localhost` or below it, which is this very host (RFC 6761 6.3)."""
    return name == "localhost" or name.endswith(".localhost")


def answer(
    name: str, *, version: int, client: Workload, mesh: NamedServices, settings: NameSettings
) -> Verdict:
    """What `client` is told about the addresses of IP `version` 4 or 6 of a name.

    The name is lower case, without the dot at its end. What is looked up does not grow with the name: a few
    aliases of it, and of each no more wildcards than the mesh has of different length.
    """
    wildcard_labels = mesh.wildcard_labels()
    domains = search_domains(client.namespace, settings)
    notes: list[str] = []
    for alias in aliases(name, client.namespace, _plain(settings.cluster_domain), domains):
        for tried in with_wildcards(alias.name, wildcard_labels):
            service = _owner(tried, client.namespace, mesh, settings, notes)
            if service is not None:
                return _answer_of(service, alias, version, client, mesh, settings, tuple(notes))
    if is_localhost(name):
        if version == 6 and not settings.ipv6:
            return Empty(NoAddress.OTHER_FAMILY, tuple(notes))
        return Addresses((LOOPBACK[version],), None, tuple(notes))
    return Forward(tuple(notes))


def _answer_of(
    service: Service,
    alias: Alias,
    version: int,
    client: Workload,
    mesh: NamedServices,
    settings: NameSettings,
    notes: tuple[str, ...],
) -> Verdict:
    """What the service that owns an alias answers."""
    if not _has_family(service, version, settings):
        return Empty(NoAddress.OTHER_FAMILY, notes)
    addresses = _addresses(service, version, client.network, mesh)
    if not addresses:
        return Empty(NoAddress.NONE, notes)
    return Addresses(addresses, None if service.hostname.startswith("*.") else alias.stripped, notes)


@lru_cache(maxsize=64)
def _plain(domain: str) -> str:
    """A domain in lower case without dots around it."""
    return domain.lower().strip(".")


def _owner(
    hostname: str, namespace: str, mesh: NamedServices, settings: NameSettings, notes: list[str]
) -> Service | None:
    """The service that answers for a hostname: with VIPs or of Kubernetes' headless kind, and visible."""
    named = mesh.services_named(hostname)
    if not named:
        return None
    candidates = []
    for service in named:
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
