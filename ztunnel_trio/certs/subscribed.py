"""Certificates that are pushed: one stream a key, open while the key is in use.

Theory of operation. The first `fetch` of a key starts its task, `close` ends it. The task has the workload
located, opens the stream in its turn (openings are limited, idle streams are not), and takes every state as
it comes: each replaces what was known of the key in one step. When a stream ends, the newest certificate
stays, and the stream is opened again after a back-off; when a state no longer has the wanted SVID, the
certificate is withdrawn.

A state without the wanted SVID is no failure of its own before there was one (an entry may be made for it
yet); who waits for it is told after `first_state_seconds`. A `fetch` that finds nothing newer than the last
one gave, as when half of a certificate's life is over, has the stream opened anew: it may have gone deaf.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn, Protocol

import trio

from ztunnel_trio.certs.provider import Pending, Withdrawn
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.certificate_key import CertificateKey
from ztunnel_trio.model.svid import NoSuchSvid, SvidState, choose
from ztunnel_trio.model.workload_reference import Reference
from ztunnel_trio.supervise.keep_running import Again, Failed, Part, RunEnd, Supervisor

log = logging.getLogger("ztunnel::identity::spire")

TIMEOUT_TEXT: Final = "Timeout while waiting for SVID stream"
BACKOFF: Final = Backoff(first_seconds=1.0, limit_seconds=30.0, jitter=0.2)
Deliver = Callable[[SvidState], None]


class SvidSource(Protocol):
    """An interface of an agent: how a workload is found, and its states followed."""

    @property
    def attests_pods(self) -> bool:
        """Whether the answer is for one pod, not for all of its identity."""
        ...

    async def run(self) -> NoReturn:
        """Keep what all streams share until cancelled."""
        ...

    async def locate(self, key: CertificateKey) -> Sequence[Reference]:
        """What the workload can be named by; waits until there is something.

        Raises:
            Unavailable: it cannot be looked for.
        """
        ...

    async def follow(self, key: CertificateKey, found: Sequence[Reference], deliver: Deliver) -> None:
        """Deliver every state until the stream ends.

        Raises:
            Unavailable: with the code and the text of the agent's status, or what else went wrong.
        """
        ...

    def hurry(self, key: CertificateKey) -> None:
        """Locate at once what is located now and then."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSettings:
    """Patience and limits of the streams."""

    first_state_seconds: float = 10.0
    """SPIRE_TIMEOUT, SPIFFE_BROKER_TIMEOUT: how long a `fetch` waits for a state."""
    openings_at_once: int = 8
    backoff: Backoff = BACKOFF
    foreign_trust_domains: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class _Subscription:
    """What is known of one key."""

    key: CertificateKey
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    stream: trio.CancelScope | None = None  # of the stream that is open now
    certificate: WorkloadCertificate | None = None
    failure: Unavailable | None = None  # since the last good state
    version: int = 0
    given: int = 0  # the version that `fetch` gave last
    is_reopened: bool = False  # the stream was ended by us
    news: trio.Event = field(default_factory=trio.Event)

    @property
    def is_stale(self) -> bool:
        """Whether all is well and nothing has come since the last `fetch`."""
        return self.version == self.given and self.certificate is not None and self.failure is None

    def publish(self, certificate: WorkloadCertificate | None, failure: Unavailable | None) -> None:
        """Replace what is known in one step, and wake everybody who waits."""
        self.certificate, self.failure = certificate, failure
        self.version += 1
        news, self.news = self.news, trio.Event()
        news.set()


class SubscribedCertificates:
    """A `certs.provider.CertificateProvider` over an agent's streams. `run` serves it."""

    def __init__(
        self, source: SvidSource, supervisor: Supervisor, settings: SubscriptionSettings | None = None
    ) -> None:
        self._source = source
        self._supervisor = supervisor
        self._settings = settings or SubscriptionSettings()
        self._openings = trio.Semaphore(self._settings.openings_at_once)
        self._subscriptions: dict[CertificateKey, _Subscription] = {}
        self._nursery: trio.Nursery | None = None
        self.crls: dict[CertificateKey, tuple[bytes, ...]] = {}
        self.on_crls: Callable[[], None] = _nobody

    @property
    def attests_pods(self) -> bool:
        """See `certs.provider.CertificateProvider`."""
        return self._source.attests_pods

    async def run(self) -> NoReturn:
        """Serve until cancelled; keys asked for before are served now."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for subscription in self._subscriptions.values():
                    nursery.start_soon(self._serve, subscription)
                await self._source.run()
            finally:
                self._nursery = None
        raise AssertionError("unreachable")

    async def fetch(self, key: CertificateKey) -> WorkloadCertificate:
        """See `certs.provider.CertificateProvider`.

        Raises:
            Withdrawn, Pending, Unavailable: as there.
        """
        subscription = self._subscriptions.get(key)
        if subscription is None:
            subscription = self._subscriptions[key] = _Subscription(key)
            if self._nursery is not None:
                self._nursery.start_soon(self._serve, subscription)
        elif subscription.is_stale and subscription.stream is not None:
            subscription.is_reopened = True
            subscription.stream.cancel(reason="opened anew to see whether there is something newer")
        with trio.move_on_after(self._settings.first_state_seconds):
            while subscription.version == subscription.given:
                await subscription.news.wait()
        subscription.given = subscription.version
        if subscription.failure is not None:
            raise subscription.failure
        if subscription.certificate is None:
            raise Pending(TIMEOUT_TEXT)
        return subscription.certificate

    async def changed(self, key: CertificateKey) -> None:
        """See `certs.provider.CertificateProvider`."""
        subscription = self._subscriptions[key]
        while subscription.version == subscription.given:
            await subscription.news.wait()

    def close(self, key: CertificateKey) -> None:
        """See `certs.provider.CertificateProvider`."""
        subscription = self._subscriptions.pop(key, None)
        if subscription is not None:
            subscription.scope.cancel(reason="nobody needs this certificate any more")
            subscription.certificate = None
        if self.crls.pop(key, ()):
            self.on_crls()

    def hurry(self, key: CertificateKey) -> None:
        """See `certs.provider.CertificateProvider`."""
        self._source.hurry(key)

    async def _serve(self, subscription: _Subscription) -> None:
        """Keep one key's stream open until it is closed."""
        part = Part(
            kind="certificate stream",
            name=f"certificate stream of {subscription.key}",
            backoff=self._settings.backoff,
            log=log,
        )
        with subscription.scope:
            await self._supervisor.keep_running(part, partial(self._follow_once, subscription))

    async def _follow_once(self, subscription: _Subscription) -> RunEnd:
        """One stream, from opening to end. What it failed with is told to those who wait."""
        began = subscription.version
        error = Unavailable("the agent ended the stream")
        subscription.is_reopened = False
        try:
            await self._follow(subscription)
        except Unavailable as failure:
            error = failure
            self._failed(subscription, failure)
        if subscription.is_reopened:
            return Again()
        has_delivered = subscription.version != began and subscription.certificate is not None
        return Failed(partial(_tell, subscription.key, error), is_first=has_delivered)

    async def _follow(self, subscription: _Subscription) -> None:
        key = subscription.key
        found = await self._source.locate(key)
        turn = _Turn(self._openings)
        await turn.take()
        try:
            with trio.CancelScope() as stream:
                subscription.stream = stream

                def deliver(state: SvidState) -> None:
                    turn.give_back()
                    self._take(subscription, state)

                await self._source.follow(key, found, deliver)
        finally:
            subscription.stream = None
            turn.give_back()

    def _take(self, subscription: _Subscription, state: SvidState) -> None:
        """A new state of a key."""
        key = subscription.key
        if self.crls.get(key, ()) != state.crls_der:
            self.crls[key] = state.crls_der
            self.on_crls()
        try:
            certificate = choose(
                state, key.identity, foreign_trust_domains=self._settings.foreign_trust_domains
            )
        except NoSuchSvid as error:
            if subscription.certificate is not None:
                log.warning("certificate of %s was withdrawn: %s", key, error)
                subscription.publish(None, Withdrawn(str(error)))
            elif state.svids:
                subscription.publish(None, Unavailable(str(error)))
            return
        except PeerBrokeProtocol as error:
            self._failed(subscription, Unavailable(str(error)))
            return
        if certificate != subscription.certificate or subscription.failure is not None:
            log.debug(
                "certificate of %s: serial %x, valid until %s", key, certificate.serial, certificate.not_after
            )
            subscription.publish(certificate, None)

    def _failed(self, subscription: _Subscription, error: Unavailable) -> None:
        """A stream that failed: what it gave before stays in use, who waits for a first state is told."""
        if isinstance(subscription.failure, Withdrawn):
            return
        subscription.publish(subscription.certificate, error)


class _Turn:
    """A place among those who open a stream; given back once, whoever does it first."""

    __slots__ = ("_has_it", "_places")

    def __init__(self, places: trio.Semaphore) -> None:
        self._places = places
        self._has_it = False

    async def take(self) -> None:
        await self._places.acquire()
        self._has_it = True

    def give_back(self) -> None:
        if self._has_it:
            self._has_it = False
            self._places.release()


def _tell(key: CertificateKey, error: Unavailable, seconds: float) -> None:
    log.warning("certificate stream of %s: %s; will retry in %.3fs", key, error, seconds)


def _nobody() -> None:
    """Nobody keeps revocation lists."""
