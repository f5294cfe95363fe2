"""Workload certificates over their life: fetched once for all who ask, renewed, kept through outages.

Theory of operation. Each key somebody asked for has one worker task: it waits for a slot, fetches,
publishes the result, and sleeps until `decide.renew` wants the next fetch. Nobody else fetches.
`certificate()` waits for the first result of a key and from then on returns what is there: a
certificate, or at once the error of the last fetch, for the worker retries by itself and a storm of
connections must not become one of requests.

A limited number of fetches run at a time. Who waits for a slot is served by priority: a connection
(REAL_TIME) before a workload that may soon need it (WARMUP) before a renewal (BACKGROUND).

Certificates live by the wall clock, sleeps by the monotonic one. So what is at hand is held against the wall
clock each time it is used, and when that clock has stepped, or the machine was suspended, every worker looks
anew at when its next fetch is due.

Forgetting a key fails its waiters and stops its worker; a fetch already with the authority is left
to end, and a request that comes before then takes its result over.

A `certs.provider.CertificateProvider` says where certificates come from: a CA that signs, or a service that
pushes. Where it attests pods, each pod has a key, a worker and a certificate of its own; else all pods of an
identity share one.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, NoReturn

import trio

from ztunnel_trio.certs.entries import (
    Available,
    CertificateState,
    Entry,
    Initializing,
    Missing,
    census,
    lifetime_of,
    state_text,
)
from ztunnel_trio.certs.provider import CertificateProvider, Pending, Withdrawn
from ztunnel_trio.certs.turns import FetchTurn, FetchTurns, Priority
from ztunnel_trio.certs.worker import Worker
from ztunnel_trio.decide.renew import (
    FETCHING,
    Failures,
    GoWithout,
    Renew,
    Retain,
    next_step,
)
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.backoff import Backoff
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.certificate_key import AttestedPod, CertificateKey
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.supervise.keep_running import Done, Part, Supervisor
from ztunnel_trio.supervise.wall_clock import WallClock

log = logging.getLogger("ztunnel::identity::manager")

FORGOTTEN: Final = "the identity is no longer needed"
LOOKED_AT_ONCE: Final = 256


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


class Keeper:
    """All workload certificates of this process. See the module's text."""

    def __init__(
        self,
        provider: CertificateProvider,
        *,
        clock: WallClock,
        rng: random.Random,
        settings: KeeperSettings | None = None,
        supervisor: Supervisor | None = None,
        tell_skew: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._provider = provider
        self._clock = clock
        self._rng = rng
        self._settings = settings or KeeperSettings()
        self._supervisor = supervisor or Supervisor(rng)
        self._tell_skew = tell_skew
        self._pods: dict[WorkloadInfo, AttestedPod] = {}
        self._entries: dict[CertificateKey, Entry] = {}
        self._workers: dict[CertificateKey, Worker] = {}
        self._turns = FetchTurns(self._settings.fetches_at_once)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve requests until cancelled; those made before are served now."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for key, worker in self._workers.items():
                    nursery.start_soon(self._live, key, worker)
                task_status.started()
                await self._follow_steps()
            finally:
                self._nursery = None
        raise AssertionError("unreachable")

    @property
    def attests_pods(self) -> bool:
        """Whether each pod has certificates of its own, which cannot be had before it is here."""
        return self._provider.attests_pods

    def key_of(self, identity: SpiffeId, pod: AttestedPod | None) -> CertificateKey:
        """What a pod's certificate of an identity is kept under."""
        return CertificateKey(identity, pod if self._provider.attests_pods else None)

    def of_pod(self, pod: AttestedPod | None) -> "PodCertificates":
        """The certificates as one pod's proxy asks for them; None where it is no pod's.

        The pod is known here until its `forget`.
        """
        if pod is not None:
            self._pods[pod.info] = pod
        return PodCertificates(self, pod)

    def pods(self) -> list[AttestedPod]:
        """The pods that are here."""
        return list(self._pods.values())

    async def certificate(self, key: CertificateKey) -> WorkloadCertificate:
        """The certificate of a key, fetched if nobody asked for it before.

        Cancelling this does not cancel the fetch: others may wait for it, now or later. One that has ended,
        by the wall clock now, is never returned: a new one is asked for at once, for all who wait. What has
        not come yet is looked for once more, and waited for a little.

        Raises:
            Unavailable: the last fetch failed and nothing valid is left, or the key was forgotten.
        """
        entry = self._request(key, Priority.REAL_TIME)
        if isinstance(entry.state, Available) and self._is_over(entry.state.certificate):
            self._begin_anew(key, entry)
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
        """The certificate at hand if it has not ended, without asking for one."""
        entry = self._entries.get(key)
        if entry is None or not isinstance(entry.state, Available) or self._is_over(entry.state.certificate):
            return None
        return entry.state.certificate

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
            if self._nursery is None and worker.turn is not None:  # no task of its own yet that would leave
                self._turns.leave(worker.turn)
            self._provider.close(key)

    def forget_pod(self, pod: AttestedPod) -> None:
        """Drop every key of a pod that is gone."""
        if self._pods.get(pod.info) == pod:
            del self._pods[pod.info]
        for key in [key for key in self._entries if key.pod == pod]:
            self.forget(key)

    def dump(self) -> list[CertificateState]:
        """Every key by order of its identity's parts and its pod, for the config dump."""
        found: list[CertificateState] = []
        for key, entry in sorted(
            self._entries.items(), key=lambda item: (item[0].identity, str(item[0].pod))
        ):
            held = entry.state.certificate if isinstance(entry.state, Available) else None
            found.append(CertificateState(key, state_text(entry.state, self._clock.now()), held))
        return found

    def census(self) -> dict[str, int]:
        """How many keys are in which state now, for the metrics."""
        return census((entry.state for entry in self._entries.values()), self._clock.now())

    def seconds_left(self) -> float | None:
        """How long the certificate that ends first is still valid; negative: over. None: there is none."""
        ends = [
            e.state.certificate.not_after for e in self._entries.values() if isinstance(e.state, Available)
        ]
        return (min(ends) - self._clock.now()).total_seconds() if ends else None

    def __len__(self) -> int:
        return len(self._entries)

    def _is_over(self, certificate: WorkloadCertificate) -> bool:
        return certificate.not_after <= self._clock.now()

    def _begin_anew(self, key: CertificateKey, entry: Entry) -> None:
        """Have a certificate fetched at once, with everybody who asks from now on waiting for it."""
        entry.state, entry.settled = Initializing(), trio.Event()
        worker = self._workers[key]
        worker.wake()
        if worker.turn is not None:
            worker.turn.priority = Priority.REAL_TIME

    async def _follow_steps(self) -> NoReturn:
        """After a step of the wall clock, or a suspend, look at every certificate anew."""
        version = self._clock.steps.version
        while True:
            version, _ = await self._clock.steps.newer_than(version)
            for number, worker in enumerate(list(self._workers.values()), start=1):
                worker.look_again(self._clock.now())
                if number % LOOKED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    def _request(self, key: CertificateKey, priority: Priority) -> Entry:
        entry = self._entries.get(key)
        worker = self._workers.get(key)
        if entry is not None:
            assert worker is not None
            if isinstance(entry.state, Initializing) and worker.turn is not None:
                worker.turn.priority = max(worker.turn.priority, priority)
            return entry
        if len(self._entries) >= self._settings.most_identities:
            raise Unavailable(f"too many identities: {len(self._entries)}")
        entry = self._entries[key] = Entry(key)
        if worker is not None:  # forgotten during a fetch that has not ended: it is ours
            worker.entry = entry
            if worker.turn is not None:
                worker.turn.priority = priority
            return entry
        # in line now: the order of requests counts, not that of task switches
        worker = self._workers[key] = Worker(entry, self._turns.join(priority))
        if self._nursery is not None:
            self._nursery.start_soon(self._live, key, worker)
        return entry

    async def _live(self, key: CertificateKey, worker: Worker) -> None:
        """One key, until it is forgotten."""
        with worker.scope:
            part = Part(kind="certificate", name=f"the certificate of {key}", log=log)
            await self._supervisor.keep_running(part, partial(self._work, key, worker))
        if self._workers.get(key) is worker:
            del self._workers[key]
            self._provider.close(key)

    async def _work(self, key: CertificateKey, worker: Worker) -> Done:
        """Fetch and renew one key until it is forgotten."""
        failures = 0
        failing_since = 0.0
        while True:
            turn = worker.turn = worker.turn or self._turns.join(Priority.BACKGROUND)
            result = await self._fetch(key, worker, turn)
            if worker.entry is None:
                return Done()
            if isinstance(result, WorkloadCertificate):
                result = self._look_at(key, result)
            if isinstance(result, WorkloadCertificate):
                worker.newest, failures = result, 0
            else:
                worker.newest = None if isinstance(result, Withdrawn) else worker.newest
                failing_since = failing_since if failures else trio.current_time()
                failures += 1
            failed = Failures(failures, trio.current_time() - failing_since) if failures else None
            seconds = self._publish(worker.entry, turn.priority, worker.newest, result, failed)
            await self._rest(key, worker, seconds, is_retry=failures > 0)

    async def _rest(self, key: CertificateKey, worker: Worker, seconds: float, *, is_retry: bool) -> None:
        """Wait for the time of the next fetch, by the wall clock, or for something new."""
        worker.due, worker.is_retry = self._clock.now() + timedelta(seconds=seconds), is_retry
        with trio.move_on_after(seconds) as worker.rest:
            await self._provider.changed(key)
        worker.rest = None

    async def _fetch(
        self, key: CertificateKey, worker: Worker, turn: FetchTurn
    ) -> WorkloadCertificate | Unavailable:
        """One fetch in its turn, or its failure."""
        try:
            await turn.has_come.wait()
            worker.is_fetching = True
            return await self._provider.fetch(key)
        except Unavailable as error:
            return error
        finally:
            worker.is_fetching, worker.turn = False, None
            self._turns.leave(turn)

    def _look_at(
        self, key: CertificateKey, arrived: WorkloadCertificate
    ) -> WorkloadCertificate | Unavailable:
        """Hold what has come against the clock: what has ended is a failure, what is not yet valid serves.

        Which of the two clocks is wrong is not to be known here; but what has ended nobody would take,
        while a peer whose clock is right takes what is early for us only.
        """
        lifetime, now = lifetime_of(arrived), self._clock.now()
        skew = lifetime.skew_seconds(now)
        self._tell_skew(abs(skew))
        if not skew:
            return arrived
        told = f"{lifetime.told(now)}; this clock and the authority's differ by {abs(skew):.0f} s or more"
        log.error("certificate of %s on arrival: %s", key, told)
        return Unavailable(told) if skew > 0 else arrived

    def _publish(
        self,
        entry: Entry,
        priority: Priority,
        newest: WorkloadCertificate | None,
        result: WorkloadCertificate | Unavailable,
        failed: Failures | None,
    ) -> float:
        """Tell everyone what a fetch gave; returns when the next one is due."""
        lifetime = None if newest is None else lifetime_of(newest)
        step = next_step(lifetime, failed, self._clock.now(), self._rng, self._settings.backoff)
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
    pod: AttestedPod | None

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
