"""The inbound side of an HBONE connection: one task a request, each answered exactly once."""

import contextvars
import ssl
from collections.abc import Awaitable, Callable, Sequence

import trio

from ztunnel_trio.model.ending import Loss
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.transport import Transport
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.tunnel.connection import Abused, Connection
from ztunnel_trio.proxy.tunnel.settings import TunnelSettings
from ztunnel_trio.proxy.tunnel.stream import NO_FIELDS, H2Failed, TunnelStream
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field

log = get_logger("proxy::h2::server")


class TunnelRequest:
    """A request at the server, to be answered exactly once."""

    __slots__ = ("_connection", "_stream", "authority", "headers", "method")

    def __init__(self, connection: Connection, stream: TunnelStream, asked: http2.TunnelRequested) -> None:
        self._connection = connection
        self._stream = stream
        self.method = asked.method
        self.authority = asked.authority
        self.headers = asked.headers

    def refuse(self, status: int) -> None:
        """Answer with a status and nothing else; harmless once it was answered or the client has gone."""
        if not self._stream.is_gone and not self._stream.status:
            self._stream.status = status
            self._connection.refuse(self._stream, status)

    def accept(self, headers: Sequence[Field]) -> TunnelStream:
        """Answer 200 with these headers.

        Raises:
            H2Failed: the client has given the stream up, or the tunnel is lost.
        """
        if self._stream.is_gone:
            raise H2Failed(self._stream.no_answer())
        self._stream.status = 200
        self._connection.accept(self._stream, headers)
        self.headers = NO_FIELDS  # they have been read, and an idle stream lives long
        return self._stream


Serve = Callable[[TunnelRequest], Awaitable[None]]


class ServerTunnel:
    """The inbound side of a tunnel; `tls` is established and owned from here on."""

    def __init__(
        self,
        engine: Engine,
        tls: "ssl.SSLSocket | Transport",
        settings: TunnelSettings,
        abused: Abused | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._connection = Connection(engine, tls, settings, self, is_client=False, abused=abused)
        self._serve: Serve | None = None
        self._nursery: trio.Nursery | None = None
        self._context = contextvars.copy_context()
        self._served = 0  # tasks

    async def run(
        self, serve: Serve, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the connection and the last request have ended; one task a request.

        Cancelling it closes at once. What `serve` raises ends the tunnel.
        """
        connection = self._connection
        self._serve = serve
        self._context = contextvars.copy_context()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                connection.begin()
                task_status.started()
                if not await connection.keep_alive():
                    log.debug("HBONE ping timeout/error, peer may have shutdown")
                await connection.say_goodbye()
                connection.close()
        finally:
            connection.close()
            self._nursery = None
        if connection.bug is not None:
            raise RuntimeError(f"a pump of the tunnel failed: {connection.bug}")

    @property
    def active_streams(self) -> int:
        """Streams that are not over."""
        return len(self._connection.streams)

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

    def drain(self) -> None:
        """Take no more requests, soon: GOAWAY(2^31-1) and PING, GOAWAY(last); closes with the last stream."""
        self._connection.drain()

    def end(self, how: Loss) -> None:
        """End all streams for this reason now; GOAWAY, and close."""
        self._connection.end(how)

    # -- see `connection.Role`

    def requested(self, asked: http2.TunnelRequested) -> None:
        """Start a task for a request."""
        nursery, stream = self._nursery, self._connection.streams.add(asked.stream_id)
        if (
            nursery is None
            or nursery.cancel_scope.cancel_called
            or self._served >= 2 * self._settings.max_streams
        ):
            stream.reset(ErrorCode.REFUSED_STREAM)
            return
        self._served += 1
        request = TunnelRequest(self._connection, stream, asked)
        # From a pump, straight into our own nursery: no task has to wake up to start another.
        self._context.run(nursery.start_soon, self._serve_one, request, stream)
        self._engine.wake()

    async def _serve_one(self, request: TunnelRequest, stream: TunnelStream) -> None:
        try:
            if self._serve is not None:
                await self._serve(request)
        finally:
            self._served -= 1
            stream.close()

    def limited(self, max_streams: int | None) -> None:
        """A server opens none."""

    def changed(self) -> None:
        """Nobody waits for that."""
