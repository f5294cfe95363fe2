"""A resolver upstream on loopback sockets, as scripted, and sockets to ask it with."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

from ztunnel_trio.dns.framing import MessageStream
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.net.sockets import SocketFactory, SocketSettings

FACTORY = SocketFactory(None, SocketSettings())
LOOPBACK = ip_address("127.0.0.1")

Answer = Callable[[bytes], list[bytes]]
"""What is sent back for a message: any number of messages."""


def zone(records: dict[tuple[str, str], list[str] | int]) -> Answer:
    """An ordinary server: an int is a response code, an unknown name NXDOMAIN."""

    def answer(message: bytes) -> list[bytes]:
        query = dns.message.from_wire(message)
        name, kind = query.question[0].name.to_text().lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        reply = dns.message.make_response(query, recursion_available=True)
        data = records.get((name, kind))
        if isinstance(data, int):
            reply.set_rcode(dns.rcode.Rcode(data))
        elif data is not None:
            reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", kind, *data))
        elif all(known != name for known, _ in records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return [reply.to_wire(max_size=65535, want_shuffle=False)]

    return answer


def silent(message: bytes) -> list[bytes]:
    return []


@dataclass(slots=True, eq=False)
class Upstream:
    """One server, one port for UDP and TCP. `asked` is what came, `ports` from where."""

    udp: Answer
    tcp: Answer
    address: SocketAddress
    asked: list[bytes] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    protocols: list[str] = field(default_factory=list)

    def note(self, message: bytes, port: int, protocol: str) -> None:
        self.asked.append(message)
        self.ports.append(port)
        self.protocols.append(protocol)


def bind_both() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """A listening TCP socket and a UDP socket of the same free port."""
    while True:
        tcp = FACTORY.listen_tcp(SocketAddress(LOOPBACK, 0)).sock
        try:
            udp = FACTORY.listen_udp(SocketAddress(LOOPBACK, tcp.getsockname()[1]))
        except OSError:
            tcp.close()
            continue
        return trio.socket.from_stdlib_socket(tcp), trio.socket.from_stdlib_socket(udp)


@asynccontextmanager
async def upstream(udp: Answer, tcp: Answer | None = None) -> AsyncIterator[Upstream]:
    """A server for the time of the block; without `tcp` it answers there as by UDP."""
    listening, datagrams = bind_both()
    listener = trio.SocketListener(listening)
    with datagrams, listening:
        port = datagrams.getsockname()[1]
        server = Upstream(udp, tcp or udp, SocketAddress(LOOPBACK, port))

        async def serve_udp() -> None:
            while True:
                message, peer = await datagrams.recvfrom(65535)
                server.note(message, peer[1], "udp")
                for reply in server.udp(message):
                    await datagrams.sendto(reply, peer)

        async def serve_tcp(stream: trio.SocketStream) -> None:
            messages = MessageStream(stream)
            with stream.socket:
                try:
                    while message := await messages.receive():
                        server.note(message, stream.socket.getpeername()[1], "tcp")
                        for reply in server.tcp(message):
                            await messages.send(reply)
                except trio.BrokenResourceError:
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(trio.serve_listeners, serve_tcp, [listener])
            yield server
            nursery.cancel_scope.cancel()
