"""The inbound side of an HBONE connection: one task a request, each answered exactly once."""

import contextvars
import ssl
from collections.abc import Awaitable, Callable, Sequence

import trio

from ztunnel_trio.model.ending import Loss, PeerSilent
from ztunnel_trio.net.engine import Engine
from ztunnel_trio.net.transport import Transport
from ztunnel_trio.observe.log import get_logger
from ztunnel_trio.proxy.tunnel import State, Tunnel, TunnelSettings
from ztunnel_trio.proxy.tunnel_stream import NO_FIELDS, H2Failed, TunnelStream
from ztunnel_trio.wire.http2 import events as http2
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import Field

log = get_logger("proxy::h2::server")


class TunnelRequest:
    """A request at the server, to be answered exactly once."""

    __slots__ = ("_stream", "_tunnel", "authority", "headers", "method")

    def __init__(self, tunnel: "ServerTunnel", stream: TunnelStream, asked: http2.TunnelRequested) -> None:
        self._tunnel = tunnel
        self._stream = stream
        self.method = asked.method
        self.authority = asked.authority
        self.headers = asked.headers

    def refuse(self, status: int) -> None:
        """Answer with a status and nothing else; harmless once it was answered or the client has gone."""
        if not self._stream.is_gone and not self._stream.status:
            self._stream.status = status
            self._tunnel.refuse(self._stream, status)

    def accept(self, headers: Sequence[Field]) -> TunnelStream:
        """Answer 200 with these headers.

        Raises:
            H2Failed: the client has given the stream up, or the tunnel is lost.
        """
        if self._stream.is_gone:
            raise H2Failed(self._stream.no_answer())
        self._tunnel.accept(self._stream, headers)
        self.headers = NO_FIELDS  # they have been read, and an idle stream lives long
        return self._stream


Serve = Callable[[TunnelRequest], Awaitable[None]]


class ServerTunnel(Tunnel):
    """The inbound side of a tunnel; `tls` is established and owned from here on."""

    def __init__(self, engine: Engine, tls: "ssl.SSLSocket | Transport", settings: TunnelSettings) -> None:
        super().__init__(engine, tls, settings, is_client=False)
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
        self._serve = serve
        self._context = contextvars.copy_context()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._begin()
                task_status.started()
                if not await self._keep_alive():
                    log.debug("HBONE ping timeout/error, peer may have shutdown")
                    self._blame(PeerSilent())
                    self.core.go_away()
                    self._close()
                await self._say_goodbye()
                self._lose()
        finally:
            self._lose()
            self._nursery = None
        if self._bug is not None:
            raise self._bug

    def drain(self) -> None:
        """Take no more requests, soon: GOAWAY(2^31-1) and PING, GOAWAY(last); closes with the last stream."""
        if self._state is State.OPEN:
            self.core.drain()
            self.flush()

    def abort(self, loss: Loss) -> None:
        """GOAWAY(last, NO_ERROR) and close; all streams are lost for this reason."""
        if self._state is State.OPEN:
            self.loss = loss
            self.core.go_away()
            self._close()

    def refuse(self, stream: TunnelStream, status: int) -> None:
        """See `TunnelRequest`."""
        self.core.refuse(stream.stream_id, status)
        self.flush()
        self._drop_if_over(stream.stream_id)

    def accept(self, stream: TunnelStream, headers: Sequence[Field]) -> None:
        """See `TunnelRequest`."""
        stream.status = 200
        self.core.accept(stream.stream_id, headers)
        self.flush()

    def _requested(self, asked: http2.TunnelRequested) -> None:
        nursery = self._nursery
        if (
            nursery is None
            or nursery.cancel_scope.cancel_called
            or self._served >= 2 * self.settings.max_streams
        ):
            self.core.reset(asked.stream_id, ErrorCode.REFUSED_STREAM)
            return
        stream = self._streams[asked.stream_id] = TunnelStream(self, asked.stream_id)
        self._served += 1
        # From a pump, straight into our own nursery: no task has to wake up to start another.
        self._context.run(nursery.start_soon, self._serve_one, TunnelRequest(self, stream, asked), stream)
        self.engine.wake()

    async def _serve_one(self, request: TunnelRequest, stream: TunnelStream) -> None:
        try:
            if self._serve is not None:
                await self._serve(request)
        finally:
            self._served -= 1
            stream.close()
