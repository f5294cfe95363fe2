"""Workload certificates over their life: fetched once for all who ask, renewed, kept through outages.

Theory of operation. Each key somebody asked for has one worker task: it waits for a slot, fetches,
publishes the result, and sleeps until `decide.renew` wants the next fetch. Nobody else fetches.
`certificate()` waits for the first result of a key and from then on returns what is there: a
certificate, or at once the error of the last fetch, for the worker retries by itself and a storm of
connections must not become one of requests.

A limited number of fetches run at a time. Who waits for a slot is served by priority: a connection
(REAL_TIME) before a workload that may soon need it (WARMUP) before a renewal (BACKGROUND).

Forgetting a key fails its waiters and stops its worker; a fetch already with the authority is left
to end, and a request that comes before then takes its result over.

A `certs.provider.CertificateProvider` says where certificates come from: a CA that signs, or a service that
pushes. Where it attests pods, each pod has a key, a worker and a certificate of its own; else all pods of an
identity share one.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Final, NoReturn

import trio

from ztunnel_trio.certs.provider import CertificateProvider, Pending, Withdrawn
from ztunnel_trio.decide.renew import (
    FETCHING,
    Failures,
    GoWithout,
    Lifetime,
    Renew,
    Retain,
    next_step,
)
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.certificate_key import CertificateKey, Pod
from ztunnel_trio.model.identity import SpiffeId

log = logging.getLogger("ztunnel::identity::manager")

FORGOTTEN: Final = "the identity is no longer needed"


class Priority(IntEnum):
    """Who is served first when fetches wait; the higher the sooner."""

    BACKGROUND = 0
    WARMUP = 1
    REAL_TIME = 2


@dataclass(frozen=True, slots=True)
class Initializing:
    """No fetch has ended yet."""


@dataclass(frozen=True, slots=True)
class Available:
    """A certificate to use."""

    certificate: WorkloadCertificate


@dataclass(frozen=True, slots=True)
class Missing:
    """No certificate to use, and why."""

    error: Unavailable


State = Initializing | Available | Missing


@dataclass(frozen=True, slots=True)
class CertificateState:
    """One key for the config dump; `state` is `Initializing`, `Available` or `Unavailable: <error>`."""

    key: CertificateKey
    state: str
    certificate: WorkloadCertificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperSettings:
    """Limits and patience of the keeper."""

    fetches_at_once: int = 8
    """ztunnel src/identity/manager.rs."""
    least_renewal_seconds: float = 1.0
    """A certificate that is past its half-life when it comes is not asked for again sooner."""
    most_identities: int = 10_000
    """Beyond it prefetching stops and new identities are refused; far above the pods of any node."""
    pending_seconds: float = 3.0
    """How long a connection waits for what has not come yet, though it was looked for before."""
    backoff: Backoff = FETCHING


@dataclass(slots=True, eq=False)
class _Entry:
    """What is published of a key; replaced when it is forgotten and asked for again."""

    key: CertificateKey
    state: State = Initializing()
    settled: trio.Event = field(default_factory=trio.Event)  # a first result, or forgotten
    news: trio.Event = field(default_factory=trio.Event)  # the next result, or forgotten
    is_forgotten: bool = False

    def publish(self, state: State) -> None:
        self.state = state
        self.settled.set()
        news, self.news = self.news, trio.Event()
        news.set()

    def forget(self) -> None:
        self.is_forgotten = True
        self.settled.set()
        self.news.set()


@dataclass(slots=True, eq=False)
class _Worker:
    """The task that serves a key. `entry` is None when it was forgotten during a fetch."""

    entry: _Entry | None
    priority: Priority
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    turn: trio.Event | None = None  # while in line for a place or holding one
    is_fetching: bool = False


class _Slots:
    """A limited number of places, given to the most urgent worker in line, by order of joining."""

    __slots__ = ("_free", "_in_line")

    def __init__(self, places: int) -> None:
        assert places > 0
        self._free = places
        self._in_line: dict[_Worker, None] = {}

    def join(self, worker: _Worker) -> None:
        """Stand in line; `worker.turn` is set when it has a place. Every join needs its `leave`."""
        worker.turn = trio.Event()
        if self._free:
            self._free -= 1
            worker.turn.set()
        else:
            self._in_line[worker] = None

    def leave(self, worker: _Worker) -> None:
        """Give the place back, or leave the line."""
        worker.turn = None
        if worker in self._in_line:
            del self._in_line[worker]
        elif not self._in_line:
            self._free += 1
        else:
            first = max(self._in_line, key=lambda one: one.priority)  # the first of the most urgent
            del self._in_line[first]
            assert first.turn is not None
            first.turn.set()


class Keeper:
    """All workload certificates of this process. See the module's text."""

    def __init__(
        self,
        provider: CertificateProvider,
        *,
        now: Callable[[], datetime],
        rng: random.Random,
        settings: KeeperSettings | None = None,
    ) -> None:
        self._provider = provider
        self._now = now
        self._rng = rng
        self._settings = settings or KeeperSettings()
        self._entries: dict[CertificateKey, _Entry] = {}
        self._workers: dict[CertificateKey, _Worker] = {}
        self._slots = _Slots(self._settings.fetches_at_once)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve requests until cancelled; those made before are served now."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for key, worker in self._workers.items():
                    nursery.start_soon(self._work, key, worker)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
        raise AssertionError("unreachable")

    @property
    def attests_pods(self) -> bool:
        """Whether each pod has certificates of its own, which cannot be had before it is here."""
        return self._provider.attests_pods

    def key_of(self, identity: SpiffeId, pod: Pod | None) -> CertificateKey:
        """What a pod's certificate of an identity is kept under."""
        return CertificateKey(identity, pod if self._provider.attests_pods else None)

    def of_pod(self, pod: Pod | None) -> "PodCertificates":
        """The certificates as one pod's proxy asks for them; None where it is no pod's."""
        return PodCertificates(self, pod)

    async def certificate(self, key: CertificateKey) -> WorkloadCertificate:
        """The certificate of a key, fetched if nobody asked for it before.

        Cancelling this does not cancel the fetch: others may wait for it, now or later. What has not come
        yet is looked for once more, and waited for a little.

        Raises:
            Unavailable: the last fetch failed and nothing valid is left, or the key was forgotten.
        """
        entry = self._request(key, Priority.REAL_TIME)
        await entry.settled.wait()
        if isinstance(entry.state, Missing) and isinstance(entry.state.error, Pending):
            self._provider.hurry(key)
            with trio.move_on_after(self._settings.pending_seconds):
                await entry.news.wait()
        if entry.is_forgotten:
            raise Unavailable(FORGOTTEN)
        match entry.state:
            case Available(certificate):
                return certificate
            case Missing(error):
                raise Unavailable(str(error)) from error
            case Initializing():
                raise AssertionError("settled without a result")

    def current(self, key: CertificateKey) -> WorkloadCertificate | None:
        """The certificate at hand, without asking for one."""
        entry = self._entries.get(key)
        return entry.state.certificate if entry and isinstance(entry.state, Available) else None

    def prefetch(self, key: CertificateKey) -> None:
        """Have a certificate ready before a connection needs it; a failure is logged and retried."""
        try:
            self._request(key, Priority.WARMUP)
        except Unavailable as error:
            log.info("couldn't prefetch: %s", error)

    def forget(self, key: CertificateKey) -> None:
        """Drop a key no workload here has any more; its waiters fail."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        entry.forget()
        worker = self._workers[key]
        worker.entry = None
        if not worker.is_fetching:
            del self._workers[key]
            worker.scope.cancel(reason="certificate forgotten")
            if self._nursery is None:  # no task of its own yet that would leave
                self._slots.leave(worker)
            self._provider.close(key)

    def forget_pod(self, pod: Pod) -> None:
        """Drop every key of a pod that is gone."""
        for key in [key for key in self._entries if key.pod == pod]:
            self.forget(key)

    def dump(self) -> list[CertificateState]:
        """Every key by order of its identity's parts and its pod, for the config dump."""
        found: list[CertificateState] = []
        for key, entry in sorted(
            self._entries.items(), key=lambda item: (item[0].identity, str(item[0].pod))
        ):
            match entry.state:
                case Initializing():
                    found.append(CertificateState(key, "Initializing", None))
                case Available(certificate):
                    found.append(CertificateState(key, "Available", certificate))
                case Missing(error):
                    found.append(CertificateState(key, f"Unavailable: {error}", None))
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def _request(self, key: CertificateKey, priority: Priority) -> _Entry:
        entry = self._entries.get(key)
        worker = self._workers.get(key)
        if entry is not None:
            assert worker is not None
            if isinstance(entry.state, Initializing):
                worker.priority = max(worker.priority, priority)
            return entry
        if len(self._entries) >= self._settings.most_identities:
            raise Unavailable(f"too many identities: {len(self._entries)}")
        entry = self._entries[key] = _Entry(key)
        if worker is not None:  # forgotten during a fetch that has not ended: it is ours
            worker.entry = entry
            worker.priority = priority
            return entry
        worker = self._workers[key] = _Worker(entry, priority)
        self._slots.join(worker)  # now: the order of requests counts, not that of task switches
        if self._nursery is not None:
            self._nursery.start_soon(self._work, key, worker)
        return entry

    async def _work(self, key: CertificateKey, worker: _Worker) -> None:
        """Fetch and renew one key until it is forgotten."""
        with worker.scope:
            newest: WorkloadCertificate | None = None
            failures = 0
            failing_since = 0.0
            while True:
                result = await self._fetch(key, worker)
                entry = worker.entry
                if entry is None:
                    break
                if isinstance(result, WorkloadCertificate):
                    newest, failures = result, 0
                else:
                    newest = None if isinstance(result, Withdrawn) else newest
                    failing_since = failing_since if failures else trio.current_time()
                    failures += 1
                seconds = self._publish(entry, worker.priority, newest, result, failures, failing_since)
                worker.priority = Priority.BACKGROUND
                with trio.move_on_after(seconds):
                    await self._provider.changed(key)
        if self._workers.get(key) is worker:
            del self._workers[key]
            self._provider.close(key)

    async def _fetch(self, key: CertificateKey, worker: _Worker) -> WorkloadCertificate | Unavailable:
        """One fetch in its turn, or its failure."""
        if worker.turn is None:
            self._slots.join(worker)
        try:
            assert worker.turn is not None
            await worker.turn.wait()
            worker.is_fetching = True
            return await self._provider.fetch(key)
        except Unavailable as error:
            return error
        finally:
            worker.is_fetching = False
            self._slots.leave(worker)

    def _publish(
        self,
        entry: _Entry,
        priority: Priority,
        newest: WorkloadCertificate | None,
        result: WorkloadCertificate | Unavailable,
        failures: int,
        failing_since: float,
    ) -> float:
        """Tell everyone what a fetch gave; returns when the next one is due."""
        failed = Failures(failures, trio.current_time() - failing_since) if failures else None
        lifetime = None if newest is None else Lifetime(newest.not_before, newest.not_after)
        step = next_step(lifetime, failed, self._now(), self._rng, self._settings.backoff)
        match step:
            case Renew():
                assert isinstance(result, WorkloadCertificate)
                entry.publish(Available(result))
                return max(step.seconds, self._settings.least_renewal_seconds)
            case Retain():
                assert newest is not None
                entry.publish(Available(newest))
                log.info(
                    "certificate renewal failed (%s); retaining existing valid certificate until %s; "
                    "next retry at %s",
                    result,
                    step.until,
                    step.retry_at,
                )
            case GoWithout():
                assert isinstance(result, Unavailable)
                if priority is Priority.WARMUP:
                    log.error('unable to prefetch cert for "%s", skipping, %s', entry.key, result)
                log.warning(
                    "certificate fetch failed (%s) and no valid existing certificate; "
                    "will retry in %.3fs (backoff capped at %gs)",
                    result,
                    step.seconds,
                    self._settings.backoff.limit_seconds,
                )
                entry.publish(Missing(result))
        return step.seconds


@dataclass(frozen=True, slots=True)
class PodCertificates:
    """The keeper as one pod's proxy sees it: by identity."""

    keeper: Keeper
    pod: Pod | None

    def forget(self) -> None:
        """The pod is gone: drop what was for it alone."""
        if self.pod is not None:
            self.keeper.forget_pod(self.pod)

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """The pod's certificate of an identity.

        Raises:
            Unavailable: as `Keeper.certificate`.
        """
        return await self.keeper.certificate(self.keeper.key_of(identity, self.pod))
