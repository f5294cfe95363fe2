"""The name server outside the mesh: what a node's /etc/resolv.conf points to.

It knows the names it was given (`zone`) and says NXDOMAIN to all others; an answer can be withheld, be an
error code, or come after forged ones. Over UDP an answer longer than the asker takes is cut (TC), over TCP it
is whole.
"""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

from ztunnel_trio.lab.hosts import GATEWAY_V4, RESOLVER, Host

_PORT: Final = 53
_SHORTEST: Final = 512  # RFC 1035 4.2.1
_LARGEST: Final = 65535
_TTL: Final = 60
_TCP_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Silence:
    """Do not answer this question at all."""


@dataclass(frozen=True, slots=True)
class Forged:
    """The answer is `data`, but forgers say `lies` first: under another id, to another question, and, where
    there is no connection, from another address and another port."""

    data: Sequence[str]
    lies: Sequence[str]


Data = Sequence[str] | dns.rcode.Rcode | Silence | Forged


@dataclass(frozen=True, slots=True)
class ResolverQuestion:
    name: str
    kind: str
    protocol: str
    asker: str


@dataclass(slots=True, eq=False)
class Resolver:
    """`zone` maps (name with its final dot, type) to record data, an error code or `Silence()`."""

    zone: dict[tuple[str, str], Data] = field(default_factory=dict)
    questions: list[ResolverQuestion] = field(default_factory=list)

    async def run(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer on port 53 of the resolver's address until cancelled.

        Raises:
            OSError: the port is taken.
        """
        listener = host.listen(_PORT, ip=RESOLVER)
        datagrams, elsewhere, other_port = (
            trio.socket.from_stdlib_socket(host.make_socket(kind=socket.SOCK_DGRAM)) for _ in range(3)
        )
        with datagrams, elsewhere, other_port:
            await datagrams.bind((str(RESOLVER), _PORT))
            await elsewhere.bind((str(GATEWAY_V4), _PORT))
            await other_port.bind((str(RESOLVER), 0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._serve_datagrams, datagrams, (elsewhere, other_port))
                await nursery.start(trio.serve_listeners, self._serve_stream, [listener])
                task_status.started()

    def answer(self, raw: bytes, protocol: str, asker: str) -> bytes | None:
        """The answer to one question; None for silence, also to what is no question."""
        try:
            query = dns.message.from_wire(raw)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.questions.append(ResolverQuestion(name, kind, protocol, asker))
        response = dns.message.make_response(query, recursion_available=True)
        match self.zone.get((name, kind)):
            case Silence():
                return None
            case dns.rcode.Rcode() as code:
                response.set_rcode(code)
            case Forged(data=truth):
                response.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", kind, *truth))
            case None:
                if not any(known == name for known, _ in self.zone):
                    response.set_rcode(dns.rcode.NXDOMAIN)
            case data:
                if data:
                    response.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", kind, *data))
        wire = response.to_wire(max_size=_LARGEST)
        limit = max(_SHORTEST, query.payload if query.edns >= 0 else _SHORTEST)
        if protocol == "udp" and len(wire) > limit:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire

    def lie(self, raw: bytes) -> bytes | None:
        """What a forger answers, who knows id and question; None where nobody lies."""
        try:
            query = dns.message.from_wire(raw)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        kind = dns.rdatatype.to_text(question.rdtype)
        forged = self.zone.get((question.name.to_text().lower(), kind))
        if not isinstance(forged, Forged):
            return None
        response = dns.message.make_response(query, recursion_available=True)
        response.answer.append(dns.rrset.from_text(question.name, _TTL, "IN", kind, *forged.lies))
        return response.to_wire()

    async def _serve_datagrams(
        self, sock: trio.socket.SocketType, forgers: Sequence[trio.socket.SocketType]
    ) -> None:
        while True:
            raw, asker = await sock.recvfrom(_LARGEST)
            if lie := self.lie(raw):
                for forger in forgers:
                    await forger.sendto(lie, asker)
                for mistaken in mistakes(lie):
                    await sock.sendto(mistaken, asker)
            if answer := self.answer(raw, "udp", asker[0]):
                await sock.sendto(answer, asker)

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        asker: str = stream.socket.getpeername()[0]
        async with stream:
            with trio.move_on_after(_TCP_SECONDS):
                try:
                    while raw := await _read_message(stream):
                        for mistaken in mistakes(self.lie(raw)):
                            await stream.send_all(struct.pack("!H", len(mistaken)) + mistaken)
                        if answer := self.answer(raw, "tcp", asker):
                            await stream.send_all(struct.pack("!H", len(answer)) + answer)
                except (OSError, trio.BrokenResourceError):
                    return


def mistakes(lie: bytes | None) -> list[bytes]:
    """The same under another id, and to a question that was not asked; nothing for nothing."""
    if lie is None:
        return []
    name_at = 13  # behind the header and the length of the first label
    return [bytes([lie[0] ^ 1]) + lie[1:], lie[:name_at] + bytes([lie[name_at] ^ 2]) + lie[name_at + 1 :]]


async def _read_message(stream: trio.SocketStream) -> bytes:
    """One message with its length before it (RFC 1035 4.2.2); nothing when the peer has said its last."""
    head = await _read_exactly(stream, 2)
    return await _read_exactly(stream, struct.unpack("!H", head)[0]) if len(head) == 2 else b""


async def _read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size and (data := await stream.receive_some(size - len(received))):
        received += data
    return bytes(received) if len(received) == size else b""
