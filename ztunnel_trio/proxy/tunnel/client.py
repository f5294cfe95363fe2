"""The outbound side of an HBONE connection: asks for as many streams as the peer takes, waits for answers."""

import ssl
from collections import deque
from collections.abc import Sequence

import trio

from ztunnel_trio.model.address import HboneTarget
from ztunnel_trio.model.ending import Loss, PeerSilent, TunnelLost
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.transport import Transport
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.tunnel.answer_deadlines import AnswerDeadlines
from ztunnel_trio.proxy.tunnel.connection import Abused, Connection
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import H2Failed, TunnelStream
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.http2.frames import LARGEST_STREAM_ID

log = get_logger("proxy::h2::client")


class ClientTunnel:
    """The outbound side of a tunnel; `tls` is established and owned from here on.

    `peer_max_streams` is how many the peer takes at once, as far as it has told.
    """

    def __init__(
        self,
        engine: Engine,
        tls: "ssl.SSLSocket | Transport",
        settings: TunnelSettings,
        abused: Abused | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._connection = Connection(engine, tls, settings, self, is_client=True, abused=abused)
        self._streams = self._connection.streams
        self._queue: deque[Once] = deque()  # opens that wait for a free stream
        self._deadlines = AnswerDeadlines(settings.doubt_seconds)
        self.peer_max_streams = settings.assumed_peer_streams

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Speak until the connection ends; the owner's task. Cancelling it closes at once, without a word."""
        connection = self._connection
        try:
            connection.begin()
            task_status.started()
            if not await self._outlast():
                log.warning("HBONE ping timeout/error")
            await connection.say_goodbye()
        finally:
            connection.close()
        if connection.bug is not None:
            raise RuntimeError(f"a pump of the tunnel failed: {connection.bug}")

    async def _outlast(self) -> bool:
        """Watch the peer until the tunnel ends; whether it ended by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deadlines.watch)
            is_over = await self._connection.keep_alive()
            nursery.cancel_scope.cancel(reason="tunnel ended")
        return is_over

    @property
    def active_streams(self) -> int:
        """Streams that are not over."""
        return len(self._streams)

    @property
    def loss(self) -> Loss:
        """Why the tunnel ended, once it has."""
        return self._connection.loss

    def budget_peaks(self) -> dict[Excess, float]:
        """How far the peer ever used each of its budgets, as a share of it."""
        return self._connection.budget_peaks()

    @property
    def ended(self) -> trio.Event:
        """Set when no stream runs any more."""
        return self._connection.ended

    @property
    def is_usable(self) -> bool:
        """Whether new streams may be opened: alive, no GOAWAY, stream ids left."""
        return self._connection.can_open

    @property
    def has_room(self) -> bool:
        """Whether `ask` may be called now."""
        return len(self._streams) < self.peer_max_streams and self.is_usable

    async def open(self, authority: HboneTarget, headers: Sequence[Field]) -> TunnelStream:
        """CONNECT, and wait for the answer's headers, whatever the status. The caller closes the stream.

        Beyond the peer's limit of streams it waits for one to end. Bytes may be relayed only after status
        200.

        Raises:
            H2Failed: there will be no answer.
        """
        while self.is_usable and not self.has_room:
            turn = Once(self._engine)
            self._queue.append(turn)
            try:
                await turn.wait()
            except BaseException:
                if turn.is_set:  # pass the place on
                    self.changed()
                else:
                    self._queue.remove(turn)
                raise
        stream = self.ask(authority, headers, trio.current_time())
        if not await self.is_answered_soon(stream):
            await self.await_late_answer(stream)
        return stream

    def ask(self, authority: HboneTarget, headers: Sequence[Field], now: float) -> TunnelStream:
        """CONNECT; the caller, who knows of room, waits for the answer next. `now` is Trio's.

        Raises:
            H2Failed: there will be no answer.
        """
        if not self.is_usable:
            raise H2Failed(TunnelLost(self._connection.loss))
        stream = self._connection.open(str(authority), headers)
        self._deadlines.add(stream.expect_answer(self._engine), now)
        return stream

    async def is_answered_soon(self, stream: TunnelStream) -> bool:
        """Wait for an answer, no longer than answers take. Without one, wait for it late or close it."""
        assert stream.answer is not None
        try:
            await stream.answer.wait()
        except BaseException:
            stream.close()
            raise
        return stream.status != 0

    async def await_late_answer(self, stream: TunnelStream) -> None:
        """Wait for an answer that is late, for as long as the peer shows that it lives.

        A peer that has gone without a word would else hold the application up until the keepalive finds
        out. Its other streams are left to that: a peer may also be too busy.

        Raises:
            H2Failed: nothing came; the stream is closed.
        """
        try:
            while stream.status == 0:
                if stream.is_gone:
                    raise H2Failed(stream.no_answer())
                heard = self._streams.heard
                answer = stream.expect_answer(self._engine)
                self._connection.ping()
                with trio.move_on_after(self._settings.proof_seconds) as waiting:
                    await answer.wait()
                if waiting.cancelled_caught and self._streams.heard == heard:
                    raise H2Failed(TunnelLost(PeerSilent()))
        except BaseException:
            stream.close()
            raise

    def release_when_idle(self) -> None:
        """Nobody will open streams any more: after the last one GOAWAY(0, NO_ERROR) and an orderly close."""
        self._connection.release()

    def end(self, how: Loss) -> None:
        """End all streams for this reason now; GOAWAY, and close."""
        self._connection.end(how)

    # -- see `connection.Role`

    def requested(self, asked: http2.TunnelRequested) -> None:
        """No server asks: `wire.http2` does not let it."""

    def limited(self, max_streams: int | None) -> None:
        """The peer told its limit."""
        self.peer_max_streams = LARGEST_STREAM_ID if max_streams is None else max_streams
        self.changed()

    def changed(self) -> None:
        """Let as many go on that wait for a stream as have room, or all when there will be none."""
        if not self._queue:
            return
        free = self.peer_max_streams - len(self._streams) if self.is_usable else len(self._queue)
        while self._queue and free > 0:
            self._queue.popleft().set()
            free -= 1
