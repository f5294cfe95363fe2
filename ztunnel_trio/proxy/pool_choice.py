"""Which tunnel of a pool a connection takes: a synchronous step over what is there.

At most one tunnel a key takes more streams. One that has taken as many as it may hold, or that has no room
any more, leaves; whoever holds it then releases it: it ends with its last stream and is never pooled again.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import trio

from ztunnel_trio.facts import defaults
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Refused


@dataclass(frozen=True, slots=True)
class PoolKey:
    """What two connections must share to share a tunnel (ztunnel src/proxy/pool.rs WorkloadKey)."""

    identity: SpiffeId
    expected: tuple[SpiffeId, ...]
    destination: SocketAddress
    client: IPAddress

    def __hash__(self) -> int:
        return int(self.destination.ip)  # tells nearly all apart; the whole would take nine calls


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Limits of one pool."""

    max_streams: int = defaults.STREAMS_PER_TUNNEL  # POOL_MAX_STREAMS_PER_CONNECTION
    idle_seconds: float = defaults.TUNNEL_IDLE_SECONDS  # since last use; POOL_UNUSED_RELEASE_TIMEOUT
    max_idle_tunnels: int = 500  # ztunnel src/proxy/pool.rs: least recently used go first


class HasStreams(Protocol):
    """What the choice needs of a tunnel."""

    @property
    def has_room(self) -> bool:
        """Whether a stream may be opened now."""

    @property
    def active_streams(self) -> int:
        """Streams that are not over."""

    @property
    def peer_max_streams(self) -> int:
        """How many the peer takes at once."""


T = TypeVar("T", bound=HasStreams)


@dataclass(slots=True, eq=False)
class Pooled(Generic[T]):
    """A tunnel that may take more streams, and when it last was given one."""

    key: PoolKey
    tunnel: T
    used_at: float


@dataclass(slots=True, eq=False)
class Dialling:
    """A dial under way; those who came while it ran share its outcome."""

    done: trio.Event = field(default_factory=trio.Event)
    failure: Refused | None = None


@dataclass(frozen=True, slots=True)
class Use(Generic[T]):
    """Open a stream on this tunnel, before anything else happens; release it then if that is its last one."""

    tunnel: T
    is_last: bool


@dataclass(frozen=True, slots=True)
class Dial(Generic[T]):
    """Dial, and tell `dialling` what came of it. `left` left the pool and is to be released."""

    dialling: Dialling
    left: T | None


@dataclass(frozen=True, slots=True)
class Wait(Generic[T]):
    """Wait for somebody else's dial, then choose again. `left` as in `Dial`."""

    dialling: Dialling
    left: T | None


class Choices(Generic[T]):
    """State: the tunnels that may be given streams, least recently used first, and the dials under way.

    `now` is of one clock, in seconds.
    """

    __slots__ = ("_settings", "dialling", "pooled")

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self.pooled: OrderedDict[PoolKey, Pooled[T]] = OrderedDict()
        self.dialling: dict[PoolKey, Dialling] = {}

    def choose(self, key: PoolKey, now: float) -> Use[T] | Dial[T] | Wait[T]:
        """What a connection that wants this key does."""
        entry, left = self.pooled.get(key), None
        if entry is not None:
            # The peer may have told its limit after it took more, or have lowered it.
            if entry.tunnel.has_room:
                return Use(entry.tunnel, self._use(entry, now))
            left = self.pooled.pop(key).tunnel
        dialling = self.dialling.get(key)
        if dialling is not None:
            return Wait(dialling, left)
        dialling = self.dialling[key] = Dialling()
        return Dial(dialling, left)

    def dialled(self, key: PoolKey, tunnel: T, now: float) -> tuple[bool, list[T]]:
        """Take in a new tunnel, with its first stream about to be opened.

        Returns whether that stream is its last one, and the tunnels that leave the pool for it.
        """
        entry = self.pooled[key] = Pooled(key, tunnel, now)
        is_last = self._use(entry, now)
        left: list[T] = []
        while len(self.pooled) > self._settings.max_idle_tunnels:
            _, oldest = self.pooled.popitem(last=False)
            left.append(oldest.tunnel)
        return is_last, left

    def ended(self, key: PoolKey, failure: Refused | None) -> None:
        """A dial is over: tell those who wait for it."""
        dialling = self.dialling.pop(key)
        dialling.failure = failure
        dialling.done.set()

    def drop(self, key: PoolKey, tunnel: T) -> None:
        """Give a tunnel no more streams."""
        if self.has(key, tunnel):
            del self.pooled[key]

    def has(self, key: PoolKey, tunnel: T) -> bool:
        """Whether the tunnel may be given more streams."""
        entry = self.pooled.get(key)
        return entry is not None and entry.tunnel is tunnel

    def idle_left(self, key: PoolKey, tunnel: T, now: float) -> float | None:
        """The seconds until a tunnel has gone unused for too long; None where it is not pooled."""
        entry = self.pooled.get(key)
        if entry is None or entry.tunnel is not tunnel:
            return None
        return entry.used_at + self._settings.idle_seconds - now

    def _use(self, entry: Pooled[T], now: float) -> bool:
        """Note that a stream is about to be opened; whether it is the tunnel's last one, which leaves."""
        entry.used_at = now
        if next(reversed(self.pooled)) is not entry.key:  # which hashes and compares
            self.pooled.move_to_end(entry.key)
        limit = min(self._settings.max_streams, entry.tunnel.peer_max_streams)
        if entry.tunnel.active_streams + 1 < limit:
            return False
        del self.pooled[entry.key]
        return True
