"""What a decision has been told beyond the mesh, and what it may ask for.

A decision that lacks a fact returns what it needs. The shell gets it, adds it to `Known` and asks again; each
thing is asked for at most once, so the questions end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.workload import Workload

if TYPE_CHECKING:
    from random import Random

HostAnswer = tuple[IPAddress, ...] | None
"""What a resolver said of a hostname: its addresses, maybe none; None when the lookup failed."""

_NO_HOSTS: Final[Mapping[str, HostAnswer]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class NeedAddress:
    """Ask the control plane for a resource, named `network/ip` or `namespace/hostname`."""

    name: str


@dataclass(frozen=True, slots=True)
class NeedHost:
    """Resolve the hostname of a workload that has no address of its own."""

    workload: Workload


@dataclass(frozen=True, slots=True)
class Known:
    """Resource names asked for, whatever the answer, and resolvers' answers by workload uid."""

    asked: frozenset[str] = frozenset()
    hosts: Mapping[str, HostAnswer] = field(default_factory=lambda: _NO_HOSTS, hash=False)

    def with_asked(self, name: str) -> Self:
        """This, and that the control plane has answered about `name`."""
        return type(self)(self.asked | {name}, self.hosts)

    def with_host(self, uid: str, answer: HostAnswer) -> Self:
        """This, and what the hostname of a workload resolved to."""
        return type(self)(self.asked, MappingProxyType({**self.hosts, uid: answer}))


@dataclass(slots=True, eq=False)
class Question:
    """One outbound decision in the making: who wants to go where, in which mesh, with what known.

    `exclude` holds uids of endpoints that were tried in vain; `on_demand` says whether the mesh holds only
    what was asked for.
    """

    source: Workload
    target: SocketAddress
    mesh: Mesh
    known: Known
    rng: "Random"
    on_demand: bool
    exclude: frozenset[str]
