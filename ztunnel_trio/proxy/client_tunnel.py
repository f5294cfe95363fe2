"""The outbound side of an HBONE connection: asks for as many streams as the peer takes, waits for answers."""

import ssl
from collections import deque
from collections.abc import Sequence

import trio

from ztunnel_trio.model.address import HboneTarget
from ztunnel_trio.model.ending import Loss, NotProcessed, PeerSilent, TunnelLost
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.transport import Transport
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.doubts import Doubts
from ztunnel_trio.proxy.tunnel import PING, State, Tunnel, TunnelSettings
from ztunnel_trio.proxy.tunnel_stream import H2Failed, TunnelStream
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.http2.frames import LARGEST_STREAM_ID

log = get_logger("proxy::h2::client")


class ClientTunnel(Tunnel):
    """The outbound side of a tunnel; `tls` is established and owned from here on."""

    def __init__(self, engine: Engine, tls: "ssl.SSLSocket | Transport", settings: TunnelSettings) -> None:
        super().__init__(engine, tls, settings, is_client=True)
        self.peer_max_streams = settings.assumed_peer_streams
        self._queue: deque[Once] = deque()  # opens that wait for a free stream
        self._releasing = False
        self._doubts = Doubts(settings.doubt_seconds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Speak until the connection ends; the owner's task. Cancelling it closes at once, without a word."""
        try:
            self._begin()
            task_status.started()
            if not await self._outlast():
                log.warning("HBONE ping timeout/error")
                self._blame(PeerSilent())
                return
            await self._say_goodbye()
        finally:
            self._lose()
        if self._bug is not None:
            raise self._bug

    async def _outlast(self) -> bool:
        """Watch the peer until the tunnel ends; whether it ended by itself."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._doubts.watch)
            is_over = await self._keep_alive()
            nursery.cancel_scope.cancel(reason="tunnel ended")
        return is_over

    @property
    def is_usable(self) -> bool:
        """Whether new streams may be opened: alive, no GOAWAY, stream ids left."""
        return (
            self._state is State.OPEN
            and self._peer_last is None
            and not self._releasing
            and self.core.can_open
        )

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
        while self.is_usable and len(self._streams) >= self.peer_max_streams:
            turn = Once(self.engine)
            self._queue.append(turn)
            try:
                await turn.wait()
            except BaseException:
                if turn.is_set:  # pass the place on
                    self._after_streams_changed()
                else:
                    self._queue.remove(turn)
                raise
        stream = self.ask(authority, headers, trio.current_time())
        if not await self.is_answered_soon(stream):
            await self.insist(stream)
        return stream

    def ask(self, authority: HboneTarget, headers: Sequence[Field], now: float) -> TunnelStream:
        """CONNECT; the caller, who knows of room, waits for the answer next. `now` is Trio's.

        Raises:
            H2Failed: there will be no answer.
        """
        if not self.is_usable:
            raise H2Failed(TunnelLost(self.loss))
        stream_id = self.core.open_stream(str(authority), headers)
        stream = self._streams[stream_id] = TunnelStream(self, stream_id)
        self._doubts.add(stream.expect_answer(self.engine), now)
        self.flush()
        return stream

    async def is_answered_soon(self, stream: TunnelStream) -> bool:
        """Wait for an answer, no longer than answers take. Without one, `insist` or close the stream."""
        assert stream.answer is not None
        try:
            await stream.answer.wait()
        except BaseException:
            stream.close()
            raise
        return stream.status != 0

    async def insist(self, stream: TunnelStream) -> None:
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
                heard = self._heard
                answer = stream.expect_answer(self.engine)
                self.core.ping(PING)
                self.flush()
                with trio.move_on_after(self.settings.proof_seconds) as waiting:
                    await answer.wait()
                if waiting.cancelled_caught and self._heard == heard:
                    raise H2Failed(TunnelLost(PeerSilent()))
        except BaseException:
            stream.close()
            raise

    def release_when_idle(self) -> None:
        """Nobody will open streams any more: after the last one GOAWAY(0, NO_ERROR) and an orderly close."""
        self._releasing = True
        if not self._streams:
            self._close_if_idle()

    def abort(self, loss: Loss) -> None:
        """Close at once, without a word; all streams are lost for this reason."""
        self.loss = loss
        self._lose()

    def _close_if_idle(self) -> None:
        if self._releasing and self._state is State.OPEN:
            self.core.go_away()
            self._close()
        else:
            super()._close_if_idle()

    def _settings_received(self, max_streams: int | None) -> None:
        self.peer_max_streams = LARGEST_STREAM_ID if max_streams is None else max_streams
        self._after_streams_changed()

    def _go_away_received(self, event: http2.GoAwayReceived) -> None:
        super()._go_away_received(event)
        for stream_id in event.unprocessed:
            self._stream_over(stream_id, NotProcessed(event.code))

    def _after_streams_changed(self) -> None:
        if not self._queue:
            return
        free = self.peer_max_streams - len(self._streams) if self.is_usable else len(self._queue)
        while self._queue and free > 0:
            self._queue.popleft().set()
            free -= 1
