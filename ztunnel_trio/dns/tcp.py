"""Questions over TCP: each connection's messages one after the other, until it ends, idles, or a drain."""

import logging
import socket
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.dns.answers import NameAnswers
from ztunnel_trio.dns.forward import Via
from ztunnel_trio.dns.framing import MessageStream
from ztunnel_trio.dns.settings import DnsSettings
from ztunnel_trio.dns.share import Share
from ztunnel_trio.dns.udp import FORWARD_SECONDS
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.wire.dns import (
    AXFR,
    IXFR,
    TCP_LIMIT,
    Query,
    Request,
    Unanswerable,
    read_request,
)

log = logging.getLogger("ztunnel::dns::server")

LONG_QUERY: Final = 1232  # what crosses every network in one datagram (DNS Flag Day 2020)


@dataclass(slots=True, eq=False)
class TcpConnections:
    """The TCP connections of one name server."""

    answers: NameAnswers
    share: Share
    settings: DnsSettings
    _open: int = 0
    _idle: set[trio.CancelScope] = field(default_factory=set)

    async def serve(self, sock: socket.socket, drain: Drain) -> None:
        """One connection."""
        if self._open >= self.settings.connections:
            sock.close()
            return
        self._open += 1
        try:
            stream = MessageStream(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
            await self._serve_messages(stream, drain)
        except (trio.BrokenResourceError, PeerBrokeProtocol) as error:
            log.debug("connection: %s", error)
        finally:
            self._open -= 1
            sock.close()

    def end_idle(self) -> None:
        """End the connections that wait for a message: the server drains."""
        for scope in self._idle:
            scope.cancel(reason="draining")

    async def _serve_messages(self, stream: MessageStream, drain: Drain) -> None:
        while not drain.is_requested:
            message = None
            with trio.move_on_after(self.settings.idle_seconds) as idle:
                self._idle.add(idle)
                try:
                    message = await stream.receive()
                finally:
                    self._idle.discard(idle)
            request = None if message is None else read_request(message)
            if message is None or request is None:
                return
            reply = await self._answer(message, request)
            with trio.move_on_after(self.settings.idle_seconds) as sending:
                await stream.send(reply)
            if sending.cancelled_caught:
                return

    async def _answer(self, message: bytes, request: Request) -> bytes:
        self.share.begin()
        reply = self.answers.now(request, "tcp", TCP_LIMIT)
        if reply is None:
            self.share.charge(FORWARD_SECONDS)
        await self.share.rest()
        if reply is not None:
            return reply
        assert not isinstance(request, Unanswerable)
        if not self.answers.budget.take():
            return self.answers.refuse(request, "tcp")
        try:
            is_transfer = isinstance(request, Query) and request.type in (AXFR, IXFR)
            via = Via.TCP if is_transfer or len(message) > LONG_QUERY else Via.UDP_THEN_TCP
            return await self.answers.later(message, request, "tcp", via, TCP_LIMIT)
        finally:
            self.answers.budget.give_back()
