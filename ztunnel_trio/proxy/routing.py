"""Asking `decide.route` where a connection goes, and getting it what it asks for."""

import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import trio

from ztunnel_trio.decide.retry import (
    MOST_ADDRESSES,
    Address,
    GiveUp,
    RecentFailures,
    Tries,
    after,
    may_help_elsewhere,
    other_addresses,
)
from ztunnel_trio.decide.route import (
    HostAnswer,
    Known,
    NeedAddress,
    NeedHost,
    OutboundRequest,
    Route,
    route,
)
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.net.listener import local_address
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.access.labels import party
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.node import NodeParts

log = get_logger("proxy::outbound")

T = TypeVar("T")

MAX_QUESTIONS: Final = 16  # a decision asks for a service, its waypoint, a gateway and their hosts at most
NOBODY: Final[frozenset[str]] = frozenset()


class SeededChance:
    """Chance for one decision, the same each time that asks.

    Seeding takes 5 µs, so it waits for the first draw; most decisions have one endpoint to choose from.
    """

    __slots__ = ("_rng", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng: random.Random | None = None

    @property
    def rng(self) -> random.Random:
        """The generator."""
        if self._rng is None:
            self._rng = random.Random(self._seed)
        return self._rng

    def randrange(self, stop: int) -> int:
        """See `decide.known.Chance`."""
        return self.rng.randrange(stop)

    def choice(self, options: Sequence[T]) -> T:
        """See `decide.known.Chance`."""
        return self.rng.choice(options)

    def choices(self, options: Sequence[T], weights: Sequence[int]) -> list[T]:
        """See `decide.known.Chance`."""
        return self.rng.choices(options, weights)


class FoundRoute(NamedTuple):
    """A route, and what was learned on the way to it."""

    route: Route
    known: Known


@dataclass(slots=True, eq=False)
class Routing:
    """Finds routes for what one workload sends.

    State: the endpoints its connections failed to reach lately, passed over while there are others.
    """

    node: NodeParts
    info: WorkloadInfo
    sockets: SocketFactory
    failures: RecentFailures = field(default_factory=RecentFailures)

    async def request(
        self, sock: socket.socket, client: SocketAddress, target: SocketAddress
    ) -> OutboundRequest:
        """What is to be decided, once our own workload is known.

        Raises:
            Refused: it is not.
        """
        settings, live = self.node.settings, self.node.live
        source = live.mesh.local_workload(self.info)
        if source is None:
            source = await live.local_workload(self.info, seconds=settings.local_workload_seconds)
        if source is None:
            raise Refused(Refusal(Reason.UNKNOWN_LOCAL_WORKLOAD, str(self.info)))
        return OutboundRequest(
            source, client.ip, target, settings.network, settings.hbone_port, self.is_here(sock, target)
        )

    def is_here(self, sock: socket.socket, target: SocketAddress) -> bool:
        """Whether dialling a port that is ours would come back to this pod, for what `sock` asked."""
        return target.port in self.node.settings.illegal_ports and (
            target == local_address(sock) or self.sockets.has_address(target.ip)
        )

    async def first(self, request: OutboundRequest) -> FoundRoute:
        """Decide where a new connection goes.

        Raises:
            Refused: there is nowhere to go.
        """
        lately = self.failures.lately(trio.current_time())
        if lately:
            try:
                return await self.find(request, Known(), lately)
            except Refused as error:  # all failed lately, or it goes to one of them and no other
                log.debug("no endpoint that did not fail lately: %s", error)
        return await self.find(request, Known(), NOBODY)

    async def next(
        self, found: FoundRoute, request: OutboundRequest, refusal: Refusal, tries: Tries
    ) -> tuple[FoundRoute, Tries] | None:
        """What to try after a refusal, and what has been tried by then; None: nothing else helps."""
        now = trio.current_time()
        here, known = found
        if here.workload is not None and may_help_elsewhere(refusal):
            self.failures.note(here.workload.uid, now)
        tries = tries.at(here)
        match after(refusal, here, tries, known, now):
            case GiveUp():
                return None
            case Address(there):
                return FoundRoute(there, known), tries
            case another:
                try:
                    return await self.find(request, known, tries.endpoints), tries.elsewhere()
                except Refused:
                    return (found, tries.elsewhere()) if another.or_same else None

    async def find(self, request: OutboundRequest, known: Known, exclude: frozenset[str]) -> FoundRoute:
        """Decide, getting what the decision asks for.

        Raises:
            Refused: there is nowhere to go.
        """
        node = self.node
        seed = node.rng.getrandbits(64)
        for _ in range(MAX_QUESTIONS):
            match route(
                request,
                node.live.mesh,
                known,
                SeededChance(seed),
                on_demand=node.settings.on_demand,
                illegal_ports=node.settings.illegal_ports,
                exclude=exclude,
                draws=node.draws,
            ):
                case Route() as found:
                    for note in found.notes:
                        log.warning("%s", note)
                    return FoundRoute(found, known)
                case Refusal() as refusal:
                    raise Refused(refusal)
                case NeedAddress(name=name):
                    await node.demand(name)
                    known = known.with_asked(name)
                case NeedHost(workload=workload):
                    known = known.with_host(workload.uid, await self.resolve(request.source, workload))
        raise Refused(Refusal(Reason.NO_HEALTHY_UPSTREAM, str(request.target)))

    async def resolve(self, source: Workload, workload: Workload) -> HostAnswer:
        """The addresses of a workload known by its hostname only."""
        self.node.metrics.on_demand_dns(party(source, source.identity, None), workload.hostname)
        return await self.node.resolve(workload.hostname)

    def others(self, found: FoundRoute, tries: Tries) -> int:
        """How many more tries may follow this one: addresses of the endpoint, endpoints of the service."""
        service = found.route.service
        if service is None:
            return 0
        endpoints = len(self.node.live.mesh.endpoints(service.key)) - 1
        addresses = len(other_addresses(found.route, tries, found.known))
        return min(tries.left, endpoints) + min(addresses, MOST_ADDRESSES - 1)
