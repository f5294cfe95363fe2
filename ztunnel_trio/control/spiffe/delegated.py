"""The Delegated Identity API: a delegate the agent trusts follows the certificates of other workloads.

Certificates and bundles come on streams of their own: one for each workload, one bundle stream for all.
A state is delivered when either changes, once both are there. The agent adds to the map of a bundle stream
and never takes from it, so a trust domain that left is visible until the stream is opened anew.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn

import trio

from ztunnel_trio.control.spiffe.link import AgentLink
from ztunnel_trio.control.spiffe.states import (
    DELEGATED_BUNDLES,
    DELEGATED_SVIDS,
    bundles_of,
    delegated_svids,
    read,
)
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.svid import Svid, SvidState
from ztunnel_trio.model.workload_reference import ByProcess, BySelectors
from ztunnel_trio.pb.messages.spire.api.agent.delegatedidentity.v1 import (
    SubscribeToX509BundlesRequest,
    SubscribeToX509BundlesResponse,
    SubscribeToX509SviDsRequest,
    SubscribeToX509SviDsResponse,
)
from ztunnel_trio.pb.messages.spire.api.types import Selector
from ztunnel_trio.supervise.keep_running import Failed, Part, RunEnd, Supervisor

log = logging.getLogger("ztunnel::identity::spire")

_SERVICE: Final = "/spire.api.agent.delegatedidentity.v1.DelegatedIdentity"
SVIDS_PATH: Final = f"{_SERVICE}/SubscribeToX509SVIDs"
BUNDLES_PATH: Final = f"{_SERVICE}/SubscribeToX509Bundles"
BUNDLE_BACKOFF: Final = Backoff(first_seconds=1.0, limit_seconds=30.0, jitter=0.2)

Deliver = Callable[[SvidState], None]
Bundles = Mapping[str, tuple[bytes, ...]]


@dataclass(slots=True, eq=False)
class _Follower:
    """One workload's stream: what it said last, and who wants to know."""

    deliver: Deliver
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    svids: tuple[Svid, ...] | None = None
    failure: Unavailable | None = None

    def tell(self, bundles: Bundles | None) -> None:
        """Deliver a state if both halves of it are there. One that is refused ends this stream alone."""
        if self.svids is None or bundles is None:
            return
        try:
            self.deliver(SvidState(self.svids, bundles))
        except Unavailable as error:
            self.failure = error
            self.scope.cancel(reason="a state was refused")


class DelegatedIdentity:
    """The API over one connection. `run` serves it; `follow` needs it to be running."""

    def __init__(self, link: AgentLink, supervisor: Supervisor) -> None:
        self._link = link
        self._supervisor = supervisor
        self._bundles: Bundles | None = None
        self._followers: set[_Follower] = set()

    async def run(self) -> NoReturn:
        """Keep the connection and the bundles of all trust domains until cancelled."""
        part = Part(kind="trust bundles", backoff=BUNDLE_BACKOFF, log=log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._link.run)
            await self._supervisor.keep_running(part, self._follow_bundles)
        raise AssertionError("unreachable")

    async def _follow_bundles(self) -> RunEnd:
        """One bundle stream; the bundles of the one before stay in use when it ends."""
        error = Unavailable("the agent ended the stream")
        before = self._bundles
        try:
            await self._link.follow(BUNDLES_PATH, bytes(SubscribeToX509BundlesRequest()), self._take_bundles)
        except Unavailable as failure:
            error = failure
        return Failed(partial(_tell, error), is_first=self._bundles is not before)

    async def follow(self, reference: BySelectors | ByProcess, deliver: Deliver) -> None:
        """Deliver every state of one workload until the agent ends the stream.

        Raises:
            Unavailable: the stream could not be opened, or ended with an error or with nonsense.
        """
        follower = _Follower(deliver)

        async def take(message: bytes) -> None:
            answer = read(SubscribeToX509SviDsResponse, message, DELEGATED_SVIDS)
            follower.svids = delegated_svids(answer.x509_svids)
            follower.tell(self._bundles)

        self._followers.add(follower)
        try:
            with follower.scope:
                await self._link.follow(SVIDS_PATH, bytes(_request(reference)), take)
        finally:
            self._followers.discard(follower)
        if follower.failure is not None:
            raise follower.failure

    async def _take_bundles(self, message: bytes) -> None:
        answer = read(SubscribeToX509BundlesResponse, message, DELEGATED_BUNDLES)
        self._bundles = bundles_of(answer.ca_certificates)
        for follower in list(self._followers):
            follower.tell(self._bundles)
            await trio.lowlevel.checkpoint()


def _tell(error: Unavailable, seconds: float) -> None:
    log.warning("trust bundles: %s; will retry in %.3fs", error, seconds)


def _request(reference: BySelectors | ByProcess) -> SubscribeToX509SviDsRequest:
    match reference:
        case ByProcess(pid):
            return SubscribeToX509SviDsRequest(pid=pid)
        case BySelectors(selectors):
            return SubscribeToX509SviDsRequest(
                selectors=[Selector(type=kind, value=value) for kind, value in selectors]
            )
