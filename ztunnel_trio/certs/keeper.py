"""Workload certificates over their life: fetched once for all who ask, renewed, kept through outages.

Theory of operation. Each identity somebody asked for has one worker task: it waits for a slot, fetches,
publishes the result, and sleeps until `decide.renew` wants the next fetch. Nobody else fetches.
`certificate()` waits for the first result of an identity and from then on returns what is there: a
certificate, or at once the error of the last fetch, for the worker retries by itself and a storm of
connections must not become one of requests.

A limited number of fetches run at a time. Who waits for a slot is served by priority: a connection
(REAL_TIME) before a workload that may soon need it (WARMUP) before a renewal (BACKGROUND).

Forgetting an identity fails its waiters and stops its worker; a fetch already with the authority is left
to end, and a request that comes before then takes its result over.

The `CertificateProvider` says where certificates come from: a CA that signs, or a service that pushes.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Final, NoReturn, Protocol

import trio

from ztunnel_trio.decide.renew import (
    DEFAULT_PATIENCE,
    Failures,
    GoWithout,
    Lifetime,
    Patience,
    Renew,
    Retain,
    next_step,
)
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.identity import SpiffeId

log = logging.getLogger("ztunnel::identity::manager")

FORGOTTEN: Final = "the identity is no longer needed"


class CertificateProvider(Protocol):
    """Where certificates come from.

    One that signs on request waits for ever in `changed`. One that is pushed certificates (SPIRE, files)
    answers `fetch` with the newest it has, waiting for the first, and returns from `changed` when there is
    a newer one than the last fetch gave. `close` ends what it holds for an identity.
    """

    async def fetch(self, identity: SpiffeId) -> WorkloadCertificate:
        """Get a certificate.

        Raises:
            Unavailable: with the text that waiters, logs and the config dump show.
        """
        ...

    async def changed(self, identity: SpiffeId) -> None:
        """Return when `fetch` would give something newer than it did last."""
        ...

    def close(self, identity: SpiffeId) -> None:
        """Drop what is held for an identity nobody needs any more. Must not block."""
        ...


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
    """No certificate to use; the text of the last failure."""

    error: str


State = Initializing | Available | Missing


@dataclass(frozen=True, slots=True)
class CertificateState:
    """One identity for the config dump; `state` is `Initializing`, `Available` or `Unavailable: <error>`."""

    identity: SpiffeId
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
    patience: Patience = DEFAULT_PATIENCE


@dataclass(slots=True, eq=False)
class _Entry:
    """What is published of an identity; replaced when it is forgotten and asked for again."""

    identity: SpiffeId
    state: State = Initializing()
    settled: trio.Event = field(default_factory=trio.Event)  # a first result, or forgotten
    is_forgotten: bool = False

    def publish(self, state: State) -> None:
        self.state = state
        self.settled.set()


@dataclass(slots=True, eq=False)
class _Worker:
    """The task that serves an identity. `entry` is None when it was forgotten during a fetch."""

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
        self._entries: dict[SpiffeId, _Entry] = {}
        self._workers: dict[SpiffeId, _Worker] = {}
        self._slots = _Slots(self._settings.fetches_at_once)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve requests until cancelled; those made before are served now."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for identity, worker in self._workers.items():
                    nursery.start_soon(self._work, identity, worker)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
        raise AssertionError("unreachable")

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """The certificate of an identity, fetched if nobody asked for it before.

        Cancelling this does not cancel the fetch: others may wait for it, now or later.

        Raises:
            Unavailable: the last fetch failed and nothing valid is left, or the identity was forgotten.
        """
        entry = self._request(identity, Priority.REAL_TIME)
        await entry.settled.wait()
        if entry.is_forgotten:
            raise Unavailable(FORGOTTEN)
        match entry.state:
            case Available(certificate):
                return certificate
            case Missing(error):
                raise Unavailable(error)
            case Initializing():
                raise AssertionError("settled without a result")

    def current(self, identity: SpiffeId) -> WorkloadCertificate | None:
        """The certificate at hand, without asking for one."""
        entry = self._entries.get(identity)
        return entry.state.certificate if entry and isinstance(entry.state, Available) else None

    def prefetch(self, identity: SpiffeId) -> None:
        """Have a certificate ready before a connection needs it; a failure is logged and retried."""
        try:
            self._request(identity, Priority.WARMUP)
        except Unavailable as error:
            log.info("couldn't prefetch: %s", error)

    def forget(self, identity: SpiffeId) -> None:
        """Drop an identity no workload here has any more; its waiters fail."""
        entry = self._entries.pop(identity, None)
        if entry is None:
            return
        entry.is_forgotten = True
        entry.settled.set()
        worker = self._workers[identity]
        worker.entry = None
        if not worker.is_fetching:
            del self._workers[identity]
            worker.scope.cancel(reason="identity forgotten")
            if self._nursery is None:  # no task of its own yet that would leave
                self._slots.leave(worker)
            self._provider.close(identity)

    def dump(self) -> list[CertificateState]:
        """Every identity by order of its parts, for the config dump."""
        found: list[CertificateState] = []
        for identity, entry in sorted(self._entries.items()):
            match entry.state:
                case Initializing():
                    found.append(CertificateState(identity, "Initializing", None))
                case Available(certificate):
                    found.append(CertificateState(identity, "Available", certificate))
                case Missing(error):
                    found.append(CertificateState(identity, f"Unavailable: {error}", None))
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def _request(self, identity: SpiffeId, priority: Priority) -> _Entry:
        entry = self._entries.get(identity)
        worker = self._workers.get(identity)
        if entry is not None:
            assert worker is not None
            if isinstance(entry.state, Initializing):
                worker.priority = max(worker.priority, priority)
            return entry
        if len(self._entries) >= self._settings.most_identities:
            raise Unavailable(f"too many identities: {len(self._entries)}")
        entry = self._entries[identity] = _Entry(identity)
        if worker is not None:  # forgotten during a fetch that has not ended: it is ours
            worker.entry = entry
            worker.priority = priority
            return entry
        worker = self._workers[identity] = _Worker(entry, priority)
        self._slots.join(worker)  # now: the order of requests counts, not that of task switches
        if self._nursery is not None:
            self._nursery.start_soon(self._work, identity, worker)
        return entry

    async def _work(self, identity: SpiffeId, worker: _Worker) -> None:
        """Fetch and renew one identity until it is forgotten."""
        with worker.scope:
            newest: WorkloadCertificate | None = None
            failures = 0
            failing_since = 0.0
            while True:
                result = await self._fetch(identity, worker)
                entry = worker.entry
                if entry is None:
                    break
                if isinstance(result, WorkloadCertificate):
                    newest, failures = result, 0
                else:
                    failing_since = failing_since if failures else trio.current_time()
                    failures += 1
                seconds = self._publish(entry, worker.priority, newest, result, failures, failing_since)
                worker.priority = Priority.BACKGROUND
                with trio.move_on_after(seconds):
                    if failures:
                        await trio.sleep_forever()
                    await self._provider.changed(identity)
        if self._workers.get(identity) is worker:
            del self._workers[identity]
            self._provider.close(identity)

    async def _fetch(self, identity: SpiffeId, worker: _Worker) -> WorkloadCertificate | str:
        """One fetch in its turn; the text of its failure otherwise."""
        if worker.turn is None:
            self._slots.join(worker)
        try:
            assert worker.turn is not None
            await worker.turn.wait()
            worker.is_fetching = True
            return await self._provider.fetch(identity)
        except Unavailable as error:
            return str(error)
        finally:
            worker.is_fetching = False
            self._slots.leave(worker)

    def _publish(
        self,
        entry: _Entry,
        priority: Priority,
        newest: WorkloadCertificate | None,
        result: WorkloadCertificate | str,
        failures: int,
        failing_since: float,
    ) -> float:
        """Tell everyone what a fetch gave; returns when the next one is due."""
        failed = Failures(failures, trio.current_time() - failing_since) if failures else None
        lifetime = None if newest is None else Lifetime(newest.not_before, newest.not_after)
        step = next_step(lifetime, failed, self._now(), self._rng, self._settings.patience)
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
                assert isinstance(result, str)
                if priority is Priority.WARMUP:
                    log.error('unable to prefetch cert for "%s", skipping, %s', entry.identity, result)
                log.warning(
                    "certificate fetch failed (%s) and no valid existing certificate; "
                    "will retry in %.3fs (backoff capped at %gs)",
                    result,
                    step.seconds,
                    self._settings.patience.limit_seconds,
                )
                entry.publish(Missing(result))
        return step.seconds
