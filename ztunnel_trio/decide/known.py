"""What a decision has been told beyond the mesh, and what it may ask for.

A decision that lacks a fact returns what it needs. The shell gets it, adds it to `Known` and asks again; each
thing is asked for at most once, so the questions end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self, TypeVar

from ztunnel_trio.mesh.mesh import Mesh
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.workload import Workload

if TYPE_CHECKING:
    from ztunnel_trio.decide.balance import Draws

T = TypeVar("T")

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


class Chance(Protocol):
    """What a decision draws by chance; `random.Random` is one."""

    def randrange(self, stop: int, /) -> int:
        """One of 0 to `stop` - 1."""

    def choice(self, options: Sequence[T], /) -> T:
        """One of these."""

    def choices(self, options: Sequence[T], weights: Sequence[int], /) -> list[T]:
        """One of these by weight, in a list."""


class RouteQuestion(NamedTuple):
    """One outbound decision in the making: who wants to go where, in which mesh, with what known.

    `exclude` holds uids of endpoints that were tried in vain; `on_demand` says whether the mesh holds only
    what was asked for; `draws` is what load balancing found out for connections before.
    """

    source: Workload
    target: SocketAddress
    mesh: Mesh
    known: Known
    rng: Chance
    on_demand: bool
    exclude: frozenset[str]
    draws: "Draws | None"

    def without(self, uids: frozenset[str]) -> Self:
        """The same, with more endpoints to leave out."""
        return self._replace(exclude=self.exclude | uids)
