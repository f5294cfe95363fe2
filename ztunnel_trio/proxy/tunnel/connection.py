"""The life of one tunnel: its states, keepalive, and the end of it all.

Joins the link, HTTP/2 and the streams for a role, which owns it. Every way a tunnel can end comes through
`end` (we end it) or `lost` (the transport is over), and both tell every stream why at once.
"""

import ssl
from collections.abc import Callable, Sequence
from typing import Final, Protocol, assert_never

import trio

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.ending import Bug, By, GoAway, Loss, PeerSilent, TransportEnded
from ztunnel_trio.net.engine import Engine, Once
from ztunnel_trio.net.transport import Transport
from ztunnel_trio.proxy.tunnel.link import Link
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.state import ALIVE, MOVES, TunnelInput, TunnelState
from ztunnel_trio.proxy.tunnel.stream import TunnelStream
from ztunnel_trio.proxy.tunnel.streams import TunnelStreams
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.budgets import Excess, OverBudget
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field
from ztunnel_trio.wire.http2.connection import Http2Connection

PING: Final = b"alive?\0\0"

_NO_CAUSES: Final = (TransportEnded(), GoAway(ErrorCode.NO_ERROR))

Abused = Callable[[Excess], None]
"""Told what a peer sent too much of."""


class Role(Protocol):
    """What the two roles do about events that are not for a stream."""

    def requested(self, asked: http2.TunnelRequested) -> None:
        """A request has come."""

    def limited(self, max_streams: int | None) -> None:
        """The peer told how many streams it takes at once, None being any number."""

    def changed(self) -> None:
        """A stream is over, or no more may be opened."""


class Connection:
    """See the module's text; `tls` is established and owned from here on.

    `loss` is why the tunnel ended, once it has; before, the cause that shows. `ended` is set when no stream
    runs any more.
    """

    def __init__(
        self,
        engine: Engine,
        tls: "ssl.SSLSocket | Transport",
        settings: TunnelSettings,
        role: Role,
        *,
        is_client: bool,
        abused: Abused | None,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.state = TunnelState.OPEN
        self.loss: Loss = TransportEnded()
        self.ended = trio.Event()
        self._role = role
        self._abused = abused
        self._core = Http2Connection(settings.http2(is_client=is_client))
        self._link = Link(engine, tls, self)
        self.streams = TunnelStreams(engine, self._core, self._link, self._heard, self._changed)
        self._acked = trio.Event()
        self._gone = Once(engine)
        self.bug: str | None = None  # what a pump of ours raised

    # -- the role's side: its life

    def begin(self) -> None:
        """Move bytes from now on."""
        self._link.start()
        self.streams.flush()

    async def keep_alive(self) -> bool:
        """PING while the tunnel lives (ztunnel src/proxy/h2.rs: do_ping_pong); end it when nobody answers.

        Returns whether it ended by itself.
        """
        while True:
            with trio.move_on_after(self.settings.ping_interval_seconds):
                await self.ended.wait()
                return True
            self._acked = trio.Event()
            self.ping()
            with trio.move_on_after(self.settings.ping_timeout_seconds) as waiting:
                await self._acked.wait()
            if waiting.cancelled_caught and not self.ended.is_set():
                self.end(PeerSilent())
                return False

    async def say_goodbye(self) -> None:
        """After `end`: wait until the last word is written and the peer has closed, but not for long."""
        with trio.move_on_after(self.settings.goodbye_seconds):
            await self._gone.wait()

    def close(self) -> None:
        """Leave: whatever still runs is lost, the transport is closed. The last thing to be called."""
        self.lost(self.loss)
        self.streams.lose_rest()

    # -- the role's side: commands

    @property
    def can_open(self) -> bool:
        """Whether new streams may be opened: alive, nobody leaves, stream ids left."""
        return self.state is TunnelState.OPEN and self._core.can_open

    def budget_peaks(self) -> dict[Excess, float]:
        """See `wire.http2.budgets.Budgets.peaks`."""
        return self._core.budgets.peaks()

    def open(self, authority: str, headers: Sequence[Field]) -> TunnelStream:
        """Client: ask for a stream; `can_open`."""
        stream = self.streams.add(self._core.open_stream(authority, headers))
        self.streams.flush()
        return stream

    def accept(self, stream: TunnelStream, headers: Sequence[Field]) -> None:
        """Server: answer 200."""
        self._core.accept(stream.stream_id, headers)
        self.streams.flush()

    def refuse(self, stream: TunnelStream, status: int) -> None:
        """Server: answer with a status and nothing else."""
        self._core.refuse(stream.stream_id, status)
        self.streams.flush()
        self.streams.drop_if_over(stream)

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._core.ping(PING)
        self.streams.flush()

    def release(self) -> None:
        """Nobody will open streams any more: after the last one GOAWAY and an orderly close."""
        self._move(TunnelInput.RELEASE)
        self._changed()

    def drain(self) -> None:
        """Take no more requests, soon: GOAWAY(2^31-1) and PING, GOAWAY(last); closes with the last stream."""
        if self.state in ALIVE:
            self._core.drain()
            self.streams.flush()
            self._move(TunnelInput.DRAIN)
            self._changed()

    # -- ends

    def end(self, how: Loss) -> None:
        """End every stream for this reason, say the last word, and close. Only the first call counts."""
        if self.state in ALIVE:
            self._move(TunnelInput.END)
            self.blame(how)
            if not isinstance(how, GoAway):  # then it has been said
                self._core.go_away()
            self._close()

    def lost(self, cause: Loss) -> None:
        """See `link.Above`: the transport is over."""
        if isinstance(cause, Bug):
            self.bug = cause.text
        if self.state is not TunnelState.GONE:
            self._move(TunnelInput.LOST)
            self.blame(cause)
            self._link.stop()
            self._lose_streams()
            self._gone.set()

    def blame(self, loss: Loss) -> None:
        """Note why the tunnel ends. The first cause is told; a graceful GOAWAY or a FIN hardly is one."""
        if self.loss in _NO_CAUSES and loss != TransportEnded():
            self.loss = loss

    def _close(self) -> None:
        self._lose_streams()
        self.streams.flush()
        self._link.finish()

    def _lose_streams(self) -> None:
        self.ended.set()
        self._acked.set()
        self.engine.wake()
        self.streams.lose(self.loss)
        self._role.changed()

    def _move(self, event: TunnelInput) -> None:
        self.state = MOVES[self.state].get(event, self.state)

    def _changed(self) -> None:
        """A stream is over, or no new ones may come: then the tunnel ends with its last one. Is that now?"""
        self._role.changed()
        if len(self.streams) or self.state is TunnelState.OPEN or self.state not in ALIVE:
            return
        if self._core.open_streams or (self.state is TunnelState.DRAINING and not self._core.is_drained):
            return
        if self.state is TunnelState.RELEASING:
            self._core.go_away()
        self._move(TunnelInput.EMPTY)
        self._close()

    # -- see `link.Above`

    def received(self, view: memoryview) -> int:
        try:
            used = self.streams.received(view)
        except PeerBrokeProtocol as error:
            self._broken(error)
            return len(view)
        if self.state is not TunnelState.OPEN:
            self._changed()
        return used

    def unblocked(self) -> None:
        self.streams.resume_all()

    def not_heard(self) -> None:
        self._broken(OverBudget(Excess.UNREAD_ANSWERS))
        self.lost(self.loss)

    def _broken(self, error: PeerBrokeProtocol) -> None:
        if isinstance(error, OverBudget) and self._abused is not None:
            self._abused(error.kind)
        code = ErrorCode.PROTOCOL_ERROR if error.code is None else error.code
        self.end(GoAway(code, By.US))

    # -- what HTTP/2 tells

    def _heard(self, event: http2.Event) -> None:
        match event:
            case http2.TunnelRequested():
                self._role.requested(event)
            case http2.SettingsReceived(max_streams):
                self._role.limited(max_streams)
            case http2.PingAcked():
                self._acked.set()
                self.engine.wake()
            case http2.GoAwayReceived():
                self.blame(GoAway(event.code))
                self._move(TunnelInput.GOAWAY)
                self._role.changed()
            case (
                http2.DataReceived()
                | http2.StreamEnded()
                | http2.ResetReceived()
                | http2.StreamFailed()
                | http2.TunnelAnswered()
                | http2.WindowOpened()
            ):
                pass  # of streams
            case _:
                assert_never(event)
