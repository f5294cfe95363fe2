"""The endpoints of a service, derived: the workloads that name it, seen through what the service takes.

Theory of operation: who names a service and what the service says come apart, in any order, and change apart.
Both are kept as they were last said, also while the other one is missing: a service that is not known yet, or
no more, keeps the workloads that name it. What its endpoints are follows from the two at each look, so it
cannot depend on what was there before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from ztunnel_trio.model.address import NamespacedHostname
from ztunnel_trio.model.service import Endpoint, Service
from ztunnel_trio.model.workload import Health

PORTS_KEPT: Final = 4096


class EndpointPorts(NamedTuple):
    """What the endpoints of one deployment have in common: service ports to target ports, and health."""

    ports: Mapping[int, int]
    health: Health


@lru_cache(PORTS_KEPT)
def _one_copy(ports: tuple[tuple[int, int], ...], health: Health) -> EndpointPorts:
    return EndpointPorts(MappingProxyType(dict(ports)), health)


def endpoint_ports(ports: Mapping[int, int], health: Health) -> EndpointPorts:
    """The one copy of equal ports and health."""
    return _one_copy(tuple(ports.items()), health)


NOTHING_LISTED: Final[Mapping[str, EndpointPorts]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class ServiceEndpoints:
    """One service somebody mentions: who names it, and what it says of itself once it is known.

    `named_by` holds every workload that names it, healthy or not; `unhealthy` counts those that are not.
    `kinds` counts the kinds of workloads that name it. `listed` are the endpoints a local file gives it by
    itself; what a workload says of itself goes before them. `version` is another number after each change of
    endpoints or service, and never that of another service.
    """

    key: NamespacedHostname
    version: int
    service: Service | None = None
    takes_unhealthy: bool = True
    named_by: dict[str, EndpointPorts] = field(default_factory=dict)
    unhealthy: int = 0
    kinds: int = 0
    listed: Mapping[str, EndpointPorts] = field(default_factory=lambda: NOTHING_LISTED)

    def set_service(self, service: Service | None, listed: Mapping[str, EndpointPorts]) -> None:
        """Make the service known, replace it, or forget it."""
        self.service = service
        self.takes_unhealthy = service is None or service.allows_unhealthy
        self.listed = listed
        self.version += 1

    @property
    def is_unmentioned(self) -> bool:
        """Whether nobody mentions it any more."""
        return self.service is None and not self.named_by and not self.kinds

    def get(self, uid: str) -> EndpointPorts | None:
        """The endpoint of a workload, None where it is none."""
        found = self.named_by.get(uid)
        if found is None:
            found = self.listed.get(uid)
        if found is None or self.takes_unhealthy or found.health is Health.HEALTHY:
            return found
        return None

    def uids(self) -> Iterator[str]:
        """The workloads that are endpoints."""
        if not self.listed and (self.takes_unhealthy or not self.unhealthy):
            return iter(self.named_by)
        return (uid for uid in {**self.listed, **self.named_by} if self.get(uid) is not None)


class Endpoints(Mapping[str, Endpoint]):
    """The endpoints of a service by uid, as they are at each look."""

    __slots__ = ("_of",)

    def __init__(self, of: ServiceEndpoints) -> None:
        self._of = of

    def __getitem__(self, uid: str) -> Endpoint:
        found = self._of.get(uid)
        if found is None:
            raise KeyError(uid)
        return Endpoint(uid, found.ports, found.health)

    def __contains__(self, uid: object) -> bool:
        return isinstance(uid, str) and self._of.get(uid) is not None

    def __iter__(self) -> Iterator[str]:
        return self._of.uids()

    def __len__(self) -> int:
        return sum(1 for _ in self._of.uids())
