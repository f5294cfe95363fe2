"""Port 15080, on request: SOCKS5 clients in the pod, carried like captured traffic."""

import socket
from dataclasses import dataclass
from typing import Protocol

import trio

from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.address import HostPort, IPAddress, SocketAddress
from ztunnel_trio.model.connection import Direction
from ztunnel_trio.net.failures import ending_of
from ztunnel_trio.observe.log import Bare, get_logger, span
from ztunnel_trio.observe.words import ending_text
from ztunnel_trio.proxy.outbound import Call, Outbound
from ztunnel_trio.wire.socks5 import ConnectRequested, Negotiation, NegotiationFailed, ReplyCode

log = get_logger("proxy::socks5")


class Resolve(Protocol):
    """How names are resolved for this workload: its own DNS server."""

    async def __call__(self, name: str, ipv6: bool) -> list[IPAddress]: ...


@dataclass(slots=True, eq=False)
class Socks:
    """Negotiates, then hands over to the outbound path."""

    outbound: Outbound
    resolve: Resolve | None

    async def serve(self, sock: socket.socket, client: SocketAddress) -> None:
        """Serve one client. Success is answered before anything is dialled."""
        node = self.outbound.node
        trace, began = node.new_trace(), node.access.clock()
        with (
            span("socks5", id=Bare(trace.trace_id)),
            node.metrics.sockets_open("source"),
        ):
            negotiation = Negotiation(has_names=self.resolve is not None)
            try:
                with trio.fail_after(node.settings.handshake_seconds):
                    target = await self.negotiate(sock, client, negotiation)
            except (OSError, trio.TooSlowError) as error:
                text = ending_text(ending_of(error))
                log.warning("failed to negotiate socks connection: io error: %s", text)
                return
            if target is None:
                return
            with node.access.connection(client, target, Direction.OUTBOUND, began=began) as record:
                entry, pair = await self.outbound.establish(sock, Call(client, target, trace), record)
                await self.outbound.carry(entry, pair, record)

    async def negotiate(
        self, sock: socket.socket, client: SocketAddress, negotiation: Negotiation
    ) -> SocketAddress | None:
        """Where the client wants to go; None when it was refused and told so."""
        event: ConnectRequested | NegotiationFailed | None = None
        while event is None:
            data = await receive(sock, negotiation.wanted)
            event = negotiation.receive(data) if data else negotiation.end()
            if event is None:
                await send(sock, negotiation.outgoing())
        outcome = await self.settle(event, client, negotiation)
        await send(sock, negotiation.outgoing())
        if isinstance(outcome, NegotiationFailed):
            log.warning("failed to negotiate socks connection: %s", outcome.text)
            return None
        return outcome

    async def settle(
        self, event: ConnectRequested | NegotiationFailed, client: SocketAddress, negotiation: Negotiation
    ) -> SocketAddress | NegotiationFailed:
        """Accept a request, its name resolved; or say why not."""
        if isinstance(event, NegotiationFailed):
            return event
        target = event.target
        if isinstance(target, HostPort):
            assert self.resolve is not None
            try:
                found = await self.resolve(target.host, client.ip.version == 6)
            except Unavailable as error:
                return negotiation.refuse(ReplyCode.HOST_UNREACHABLE, f"dns lookup: {error}")
            if not found:
                return negotiation.refuse(
                    ReplyCode.HOST_UNREACHABLE, "dns response had no valid IP addresses"
                )
            target = SocketAddress(found[0], target.port)
        negotiation.accept()
        return target


async def receive(sock: socket.socket, at_most: int) -> bytes:
    """Some bytes from a non-blocking socket; none at its end."""
    while True:
        try:
            return sock.recv(at_most)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)


async def send(sock: socket.socket, data: bytes) -> None:
    """All of these bytes to a non-blocking socket."""
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
