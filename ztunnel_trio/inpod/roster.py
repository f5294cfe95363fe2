"""Which pods this proxy serves, and what follows from each thing that happens. Sans-io.

The agent names every pod it knows after connecting, ends that with a snapshot, then tells changes. Until the
snapshot nothing is stopped: pods named in it stay or start, the others are stopped when it ends. A pod
whose proxy cannot start waits among the *pending* and is tried again every five seconds; it is refused to
the agent, which may repeat it. A lost connection stops nobody: the agent repeats itself when it is back.

`receive` takes one event and returns the actions that follow, in order. `StartProxy` is answered by
`ProxyStarted` or `ProxyFailed`; `StopProxy` is done when the next action is performed. Each request of the
agent gets exactly one `Answer`, in order. Namespaces are opaque: they have a key and can be
closed; who performs `StartProxy` takes the namespace over only if the proxy started
(ztunnel src/inpod/statemanager.rs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, assert_never

from ztunnel_trio.errors import WeBrokeProtocol
from ztunnel_trio.model.workload import WorkloadInfo
from ztunnel_trio.wire.zds import PodAdded, PodDeleted, PodKept, SnapshotSent

RETRY_SECONDS: Final = 5.0  # ztunnel src/inpod/workloadmanager.rs RETRY_DURATION


class Namespace(Protocol):
    """A pod's network namespace, owned by who holds it."""

    @property
    def key(self) -> tuple[int, int]:
        """What tells namespaces apart."""
        ...

    def close(self) -> None: ...


N = TypeVar("N", bound=Namespace)


# Events


@dataclass(frozen=True, slots=True)
class Connected:
    """A new connection to the agent; it will name everything anew."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; proxies go on."""


@dataclass(frozen=True, slots=True)
class Ended:
    """No more connections: what is pending will never start, and no completion will come."""


@dataclass(frozen=True, slots=True)
class RequestUnreadable:
    """The agent sent something that is no request."""

    text: str


@dataclass(frozen=True, slots=True)
class NamespaceUnusable:
    """A pod was added with a descriptor that cannot be examined; it is closed."""

    uid: str
    text: str


@dataclass(frozen=True, slots=True)
class ProxyStarted:
    """Completes `StartProxy`: every port is bound, and the proxy owns the namespace."""

    uid: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """Completes `StartProxy`: nothing runs, and the namespace is still the roster's."""

    uid: str
    text: str


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The time set by `RetryAfter` has come."""


Request = PodAdded[N] | PodKept | PodDeleted | SnapshotSent
Event = (
    Request[N]
    | Connected
    | Disconnected
    | Ended
    | RequestUnreadable
    | NamespaceUnusable
    | ProxyStarted
    | StartFailed
    | RetryDue
)


# Actions


@dataclass(frozen=True, slots=True)
class StartProxy(Generic[N]):
    """Bind every port of a pod. `is_retry`: nobody waits for an answer."""

    uid: str
    info: WorkloadInfo
    netns: N
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class StopProxy:
    """End a pod's proxy at once, or forget that it could not be started."""

    uid: str


@dataclass(frozen=True, slots=True)
class CloseNetns(Generic[N]):
    """Let go of a namespace no proxy took over."""

    netns: N


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge the request in hand; empty is success."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Report `RetryDue` after this long, unless the connection ends before."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Drop this connection and make another: it is out of step."""


@dataclass(frozen=True, slots=True)
class EndProcess:
    """The agent speaks another protocol than we do: end the process."""

    text: str


Action = StartProxy[N] | StopProxy | CloseNetns[N] | Acknowledge | RetryAfter | Reconnect | EndProcess


@dataclass(frozen=True, slots=True)
class Running:
    """A pod that is served."""

    info: WorkloadInfo
    netns_key: tuple[int, int]


@dataclass(slots=True, eq=False)
class Roster(Generic[N]):
    """The pods of this node. `running` and `pending` are read by metrics and dumps, changed only here."""

    running: dict[str, Running] = field(default_factory=dict)
    pending: dict[str, StartProxy[N]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    has_snapshot: bool = False
    _starting: dict[str, StartProxy[N]] = field(default_factory=dict)
    _retry_is_set: bool = False

    @property
    def is_ready(self) -> bool:
        """Everything the agent named on this connection is served."""
        return self.has_snapshot and not self.pending

    @property
    def waiting(self) -> Mapping[str, WorkloadInfo]:
        """Pods that ought to be served and are not (yet)."""
        return {uid: start.info for uid, start in (self.pending | self._starting).items()}

    def receive(self, event: Event[N]) -> list[Action[N]]:
        """Take one event; the actions that follow, to be performed in order.

        Raises:
            WeBrokeProtocol: a completion of something that was not asked for.
        """
        match event:
            case PodAdded(uid, info, netns):
                return self._pod_added(uid, info, netns)
            case PodKept(uid):
                if self.has_snapshot:
                    return _mismatch("pod keep received after snapshot")
                self.named.add(uid)
                return [Acknowledge()]
            case PodDeleted(uid):
                return self._pod_deleted(uid)
            case SnapshotSent():
                return self._snapshot_sent()
            case ProxyStarted(uid):
                return self._proxy_started(self._completed(uid))
            case StartFailed(uid, text):
                return self._proxy_failed(self._completed(uid), text)
            case RetryDue():
                self._retry_is_set = False
                again = [StartProxy(p.uid, p.info, p.netns, is_retry=True) for p in self.pending.values()]
                return [self._start(start) for start in again]
            case NamespaceUnusable(uid, text):
                if not self.has_snapshot:
                    self.named.add(uid)
                return [Acknowledge(f"failure to start proxy : {text}")]
            case RequestUnreadable(text):
                return [Acknowledge(f"failure to read message : {text}"), Reconnect()]
            case Disconnected():
                self.has_snapshot = False
                return []
            case Connected() | Ended():
                self.has_snapshot = self._retry_is_set = False
                self.named.clear()
                return self._drop_pending()
            case _:
                assert_never(event)

    def _pod_added(self, uid: str, info: WorkloadInfo | None, netns: N) -> list[Action[N]]:
        if info is None:
            return [CloseNetns(netns), *_mismatch("workload_info is required but not present")]
        if not self.has_snapshot:
            self.named.add(uid)
        served = self.running.get(uid)
        if served is not None and served.netns_key == netns.key:
            return [CloseNetns(netns), Acknowledge()]  # the agent repeats itself after a reconnect
        stop: list[Action[N]] = [] if served is None else [self._stop(uid)]
        return [*stop, self._start(StartProxy(uid, info, netns))]  # no answer yet: ports must be bound first

    def _pod_deleted(self, uid: str) -> list[Action[N]]:
        actions: list[Action[N]] = []
        if not self.has_snapshot:
            self.named.discard(uid)  # its proxy, if there is one, goes when the snapshot ends
        elif uid in self.running:
            actions.append(self._stop(uid))
        waiting = self.pending.pop(uid, None)
        if waiting is not None:
            actions += [StopProxy(uid), CloseNetns(waiting.netns)]
        return [*actions, Acknowledge()]

    def _snapshot_sent(self) -> list[Action[N]]:
        if self.has_snapshot:
            return _mismatch("pod snapshot received already")
        self.has_snapshot = True
        gone = [uid for uid in self.running if uid not in self.named]
        self.named.clear()
        return [*(self._stop(uid) for uid in gone), Acknowledge()]

    def _proxy_started(self, start: StartProxy[N]) -> list[Action[N]]:
        self.running[start.uid] = Running(start.info, start.netns.key)
        return [*self._supersede_pending(start), *_answer(start, "")]

    def _proxy_failed(self, start: StartProxy[N], text: str) -> list[Action[N]]:
        superseded = self._supersede_pending(start)
        self.pending[start.uid] = start
        retry: list[Action[N]] = [] if self._retry_is_set else [RetryAfter(RETRY_SECONDS)]
        self._retry_is_set = True
        return [*superseded, *_answer(start, f"failure to start proxy : {text}"), *retry]

    def _supersede_pending(self, start: StartProxy[N]) -> list[Action[N]]:
        """A start settles what an earlier one left waiting, whose namespace goes unless this one uses it."""
        before = self.pending.pop(start.uid, None)
        return [] if before is None or before.netns is start.netns else [CloseNetns(before.netns)]

    def _start(self, start: StartProxy[N]) -> StartProxy[N]:
        self._starting[start.uid] = start
        return start

    def _completed(self, uid: str) -> StartProxy[N]:
        start = self._starting.pop(uid, None)
        if start is None:
            raise WeBrokeProtocol(f"no proxy of {uid} is starting")
        return start

    def _stop(self, uid: str) -> StopProxy:
        del self.running[uid]
        return StopProxy(uid)

    def _drop_pending(self) -> list[Action[N]]:
        """What is pending and, at the very end, what was being started when it came."""
        dropped = [*self.pending.values(), *(s for s in self._starting.values() if not s.is_retry)]
        self.pending.clear()
        self._starting.clear()
        actions: list[Action[N]] = []
        for start in dropped:
            actions += [StopProxy(start.uid), CloseNetns(start.netns)]
        return actions


def _answer(start: StartProxy[N], error: str) -> list[Acknowledge]:
    return [] if start.is_retry else [Acknowledge(error)]


def _mismatch(text: str) -> list[Action[N]]:
    return [Acknowledge(f"failure to process message : {text}"), EndProcess(text)]
