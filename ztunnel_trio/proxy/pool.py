"""Outbound tunnels of one workload, by own identity, identities expected there, destination and client.

A tunnel serves many connections. N first requests for one key make one dial; a tunnel that has taken as
many streams as it may hold is retired: it ends with its last stream and is never pooled again. A tunnel
found dead on use is replaced without the application noticing. The expected identities are part of the
key, so an address taken over by another workload can never get the old one's tunnel.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from ztunnel_trio.model.address import HboneTarget, IPAddress, SocketAddress
from ztunnel_trio.model.identity import SpiffeId
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.net.tls import TlsPeer
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.client_tunnel import ClientTunnel
from ztunnel_trio.proxy.serving import contained
from ztunnel_trio.proxy.tunnel import Tunnel
from ztunnel_trio.proxy.tunnel_stream import H2Failed, TunnelStream
from ztunnel_trio.wire.http2.compression import Field

log = get_logger("proxy::pool")

MOST_TRIES: Final = 4  # tunnels of one key that one connection tries; the peer cannot keep it busy for ever


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

    max_streams: int = 100  # a tunnel; POOL_MAX_STREAMS_PER_CONNECTION
    idle_seconds: float = 300.0  # since last use; POOL_UNUSED_RELEASE_TIMEOUT
    max_idle_tunnels: int = 500  # ztunnel src/proxy/pool.rs: least recently used go first


Dial = Callable[[PoolKey, float], Awaitable[tuple[ClientTunnel, TlsPeer]]]
"""Makes a tunnel; the number is the seconds the TCP connection may take."""

Watch = Callable[[ClientTunnel, TlsPeer], AbstractContextManager[None]]
"""Watches the peer of a tunnel for revocation, for as long as the tunnel lives."""


@dataclass(slots=True, eq=False)
class Dialling:
    """A dial under way; those who came while it ran share its outcome."""

    done: trio.Event = field(default_factory=trio.Event)
    failure: Exception | None = None


@dataclass(slots=True, eq=False)
class Pooled:
    """A tunnel that may take more streams, and when it last was given one (Trio's clock)."""

    key: PoolKey
    tunnel: ClientTunnel
    used_at: float
    is_pooled: bool = True


@dataclass(slots=True, eq=False)
class Pool:
    """Tunnels live in `nursery`, which the owner of the pool opened. `dial` raises what it fails with.

    State: at most one tunnel a key takes more streams (`pooled`, least recently used first); `alive` holds
    every tunnel that runs, the owner's too.
    """

    nursery: trio.Nursery
    dial: Dial
    watch: Watch
    settings: PoolSettings
    alive: set[Tunnel] = field(default_factory=set)
    pooled: OrderedDict[PoolKey, Pooled] = field(default_factory=OrderedDict)
    dialling: dict[PoolKey, Dialling] = field(default_factory=dict)

    def ask(
        self, key: PoolKey, authority: HboneTarget, headers: Sequence[Field], now: float
    ) -> tuple[ClientTunnel, TunnelStream] | None:
        """Ask for a stream on the tunnel that is there; None where none has room now. `now` is Trio's.

        The caller waits for the answer next, and comes to `open` with what got none soon.
        """
        entry = self.take(key, now)
        if entry is None:
            return None
        tunnel = entry.tunnel
        try:
            return tunnel, tunnel.ask(authority, headers, now)
        finally:
            if not entry.is_pooled:
                tunnel.release_when_idle()

    async def open(
        self,
        key: PoolKey,
        authority: HboneTarget,
        headers: Sequence[Field],
        connect_seconds: float,
        asked: tuple[ClientTunnel, TunnelStream] | None = None,
    ) -> TunnelStream:
        """Open a stream on a tunnel of this key and wait for the peer's answer, whatever its status.

        A tunnel that was there already and gives no answer is given up for another one.

        Raises:
            H2Failed: a tunnel dialled for this very stream failed before answering.
            Refused: no tunnel could be had; those who waited for the same dial get the same.
        """
        for tries_left in reversed(range(MOST_TRIES)):
            is_fresh = False
            if asked is None:
                tunnel, is_fresh = await self.checkout(key, connect_seconds)
            else:
                tunnel = asked[0]
            try:
                if asked is None:
                    return await tunnel.open(authority, headers)
                await tunnel.insist(asked[1])
                return asked[1]
            except H2Failed as error:
                asked = None
                self.unpool(key, tunnel)
                if is_fresh or not tries_left:
                    raise
                log.debug("pooled tunnel to %s was dead (%s), trying another", key.destination, error)
            finally:
                self.release_if_retired(key, tunnel)
        raise AssertionError("the last try returns or raises")

    def release_if_retired(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """A tunnel that was taken out of the pool ends with its last stream."""
        if not self.is_pooled(key, tunnel):
            tunnel.release_when_idle()

    async def checkout(self, key: PoolKey, connect_seconds: float) -> tuple[ClientTunnel, bool]:
        """A tunnel with room for one more stream, and whether it was dialled for this call.

        The caller opens its stream before the next checkpoint, so the room stays.
        """
        while True:
            if (found := self.take(key, trio.current_time())) is not None:
                return found.tunnel, False
            if (other := self.dialling.get(key)) is None:
                return await self.dial_one(key, connect_seconds), True
            await other.done.wait()
            if other.failure is not None:
                raise copy_of(other.failure)

    async def dial_one(self, key: PoolKey, connect_seconds: float) -> ClientTunnel:
        """Dial, with everybody else who wants this key waiting for the outcome.

        Where the connection that dials is cancelled, the next in line dials for itself.
        """
        mine = self.dialling[key] = Dialling()
        try:
            tunnel, peer = await self.dial(key, connect_seconds)
        except Exception as error:
            mine.failure = error
            raise
        else:
            self.nursery.start_soon(contained, "tunnel", partial(self.keep, key, tunnel, peer))
            self.put(key, tunnel)
            return tunnel
        finally:
            del self.dialling[key]
            mine.done.set()

    def take(self, key: PoolKey, now: float) -> Pooled | None:
        """The pooled tunnel, if it can take a stream now; one that can't any more is dropped."""
        entry = self.pooled.get(key)
        if entry is None:
            return None
        tunnel = entry.tunnel
        # The peer may have told its limit after it took more, or have lowered it.
        if not tunnel.has_room:
            self.forget(key, tunnel)
            return None
        self.use(entry, now)
        return entry

    def put(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """Pool a new tunnel, with its first stream about to be opened."""
        now = trio.current_time()
        entry = self.pooled[key] = Pooled(key, tunnel, now)
        self.use(entry, now)
        while len(self.pooled) > self.settings.max_idle_tunnels:
            _, oldest = self.pooled.popitem(last=False)
            oldest.is_pooled = False
            oldest.tunnel.release_when_idle()

    def use(self, entry: Pooled, now: float) -> None:
        """Note that a stream is about to be opened; retire the tunnel when it is its last one."""
        entry.used_at = now
        if next(reversed(self.pooled)) is not entry.key:  # which hashes and compares
            self.pooled.move_to_end(entry.key)
        limit = min(self.settings.max_streams, entry.tunnel.peer_max_streams)
        if entry.tunnel.active_streams + 1 >= limit:
            self.unpool(entry.key, entry.tunnel)

    def is_pooled(self, key: PoolKey, tunnel: ClientTunnel) -> bool:
        """Whether the tunnel may be given more streams."""
        entry = self.pooled.get(key)
        return entry is not None and entry.tunnel is tunnel

    def forget(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """Give a tunnel no more streams; it ends with its last one."""
        self.unpool(key, tunnel)
        tunnel.release_when_idle()

    def unpool(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """Give a tunnel no more streams. Whoever holds it releases it once its stream is open."""
        if self.is_pooled(key, tunnel):
            self.pooled.pop(key).is_pooled = False

    async def keep(self, key: PoolKey, tunnel: ClientTunnel, peer: TlsPeer) -> None:
        """The life of one tunnel: run it, and forget it when it was not used for long or has ended."""
        self.alive.add(tunnel)
        try:
            with self.watch(tunnel, peer):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.expire, key, tunnel)
                    await tunnel.run()
                    nursery.cancel_scope.cancel(reason="tunnel ended")
        finally:
            self.alive.discard(tunnel)
            self.unpool(key, tunnel)

    async def expire(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """Forget the tunnel once it has gone unused for the idle time."""
        while (entry := self.pooled.get(key)) is not None and entry.tunnel is tunnel:
            left = entry.used_at + self.settings.idle_seconds - trio.current_time()
            if left <= 0:
                self.forget(key, tunnel)
                return
            await trio.sleep(left)


def copy_of(failure: Exception) -> Exception:
    """The same failure for another connection; an exception object belongs to one traceback."""
    match failure:
        case Refused(refusal=refusal):
            return Refused(refusal)
        case _:
            return Refused(Refusal(Reason.IO, str(failure)))
