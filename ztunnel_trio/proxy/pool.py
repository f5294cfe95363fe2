"""Outbound tunnels of one workload, by own identity, identities expected there, destination and client.

`stream` is all a connection needs. A tunnel serves many; N first requests for one key make one dial. A
tunnel found dead on use, or that says that it did not process a request, is replaced without the
application noticing. The expected identities are part of the key, so an address taken over by another
workload can never get the old one's tunnel.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

import trio

from ztunnel_trio.model.address import HboneTarget
from ztunnel_trio.model.ending import By, Ending, GoAway, NoAnswer, NotProcessed, TunnelLost
from ztunnel_trio.model.refusal import Reason, Refusal, Refused
from ztunnel_trio.net.tls.peer import TlsPeer
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.observe.words import ending_text
from ztunnel_trio.proxy.pool_choice import Choices, Dial, PoolKey, PoolSettings, Use, Wait
from ztunnel_trio.proxy.serving import contained
from ztunnel_trio.proxy.tunnel.client import ClientTunnel
from ztunnel_trio.proxy.tunnel.either import Tunnel
from ztunnel_trio.proxy.tunnel.stream import H2Failed, TunnelStream
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field

log = get_logger("proxy::pool")

MOST_TRIES: Final = 4  # tunnels of one key that one connection tries; the peer cannot keep it busy for ever


class StreamRequest(NamedTuple):
    """What a connection wants of the pool: CONNECT `authority`, over a tunnel of `key`.

    `connect_seconds` bounds a TCP connection, should one be dialled; `answer_by` is when the answer has to
    be there, on Trio's clock.
    """

    key: PoolKey
    authority: HboneTarget
    headers: Sequence[Field]
    connect_seconds: float
    answer_by: float


DialTunnel = Callable[[PoolKey, float], Awaitable[tuple[ClientTunnel, TlsPeer]]]
"""Makes a tunnel or raises `Refused`; the number is the seconds the TCP connection may take."""

Choice = Use[ClientTunnel] | Dial[ClientTunnel] | Wait[ClientTunnel]

Watch = Callable[[ClientTunnel, TlsPeer], AbstractContextManager[None]]
"""Watches the peer of a tunnel for revocation, for as long as the tunnel lives."""


@dataclass(slots=True, eq=False)
class Pool:
    """Tunnels live in `nursery`, which the owner of the pool opened; `alive` is the owner's list of them."""

    nursery: trio.Nursery
    dial: DialTunnel
    watch: Watch
    settings: PoolSettings
    alive: set[Tunnel] = field(default_factory=set)
    choices: Choices[ClientTunnel] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = Choices(self.settings)

    async def stream(self, request: StreamRequest, now: float) -> TunnelStream:
        """Open a stream and wait for the peer's answer, whatever its status. `now` is Trio's.

        Raises:
            Refused: no tunnel could be had (those who waited for the same dial get the same), or none gave
                an answer in time.
        """
        choice, asked = self.choices.choose(request.key, now), None
        try:
            if isinstance(choice, Use):
                asked = self._ask(choice, request, now)
                if await choice.tunnel.is_answered_soon(asked):
                    return asked  # nearly always: no deadline of its own, which costs 24 µs
            with trio.fail_at(request.answer_by):
                return await self._get(request, choice, asked)
        except H2Failed as error:
            raise Refused(Refusal(Reason.H2, cause=error.ending)) from error
        except trio.TooSlowError as error:
            raise Refused(Refusal(Reason.H2, cause=NoAnswer())) from error

    def _ask(self, choice: Use[ClientTunnel], request: StreamRequest, now: float) -> TunnelStream:
        try:
            return choice.tunnel.ask(request.authority, request.headers, now)
        finally:
            if choice.is_last:
                choice.tunnel.release_when_idle()

    async def _get(self, request: StreamRequest, choice: Choice, late: TunnelStream | None) -> TunnelStream:
        """What takes longer: a `late` answer, a dial, another tunnel for one that was dead."""
        key, tries_left = request.key, MOST_TRIES
        while True:
            if isinstance(choice, Wait):
                await wait_for(choice)
                choice = self.choices.choose(key, trio.current_time())
                continue
            is_fresh = isinstance(choice, Dial)
            if isinstance(choice, Dial):
                with self._dialling(key, choice):
                    tunnel, peer = await self.dial(key, request.connect_seconds)
                    use = self._take_in(key, tunnel, peer)
            else:
                use = choice
            try:
                if late is None:
                    late = self._ask(use, request, trio.current_time())
                    if await use.tunnel.is_answered_soon(late):
                        return late
                await use.tunnel.await_late_answer(late)
                return late
            except H2Failed as error:
                tries_left -= 1
                self.choices.drop(key, use.tunnel)
                use.tunnel.release_when_idle()
                if not tries_left or (is_fresh and not is_sent_elsewhere(error.ending)):
                    raise
                text = ending_text(error.ending)
                log.debug("no stream on a tunnel to %s (%s), trying another", key.destination, text)
                late, choice = None, self.choices.choose(key, trio.current_time())

    @contextmanager
    def _dialling(self, key: PoolKey, choice: Dial[ClientTunnel]) -> Iterator[None]:
        """Dial in the body, with everybody else who wants this key waiting for the outcome.

        Where the connection that dials is cancelled, the next in line dials for itself.
        """
        failure = None
        release(choice.left)
        try:
            yield
        except Refused as error:
            failure = error
            raise
        finally:
            self.choices.ended(key, failure)

    def _take_in(self, key: PoolKey, tunnel: ClientTunnel, peer: TlsPeer) -> Use[ClientTunnel]:
        """Start a new tunnel's life; to be used at once."""
        self.nursery.start_soon(contained, "tunnel", partial(self.keep, key, tunnel, peer))
        is_last, left = self.choices.dialled(key, tunnel, trio.current_time())
        for each in left:
            each.release_when_idle()
        return Use(tunnel, is_last)

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
            self.choices.drop(key, tunnel)

    async def expire(self, key: PoolKey, tunnel: ClientTunnel) -> None:
        """Forget the tunnel once it has gone unused for the idle time."""
        while (left := self.choices.idle_left(key, tunnel, trio.current_time())) is not None:
            if left <= 0:
                self.choices.drop(key, tunnel)
                tunnel.release_when_idle()
                return
            await trio.sleep(left)


def is_sent_elsewhere(ending: Ending) -> bool:
    """Whether the peer itself wants a request on another tunnel: not processed, or it drains this one."""
    match ending:
        case NotProcessed() | TunnelLost(GoAway(ErrorCode.NO_ERROR, By.PEER)):
            return True
        case _:
            return False


async def wait_for(other: Wait[ClientTunnel]) -> None:
    """Wait for somebody else's dial.

    Raises:
        Refused: what it failed with.
    """
    release(other.left)
    await other.dialling.done.wait()
    if other.dialling.failure is not None:
        raise Refused(other.dialling.failure.refusal)  # an exception object belongs to one traceback


def release(tunnel: ClientTunnel | None) -> None:
    """A tunnel that left the pool ends with its last stream."""
    if tunnel is not None:
        tunnel.release_when_idle()
