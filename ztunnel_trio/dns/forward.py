"""The resolver upstream: one question out, one answer in, the bytes as they are.

The client's message goes out unchanged but for its id, the answer comes back unchanged but for the same.
Each query has a socket of its own, so the kernel gives it a random port, and a random id. The socket is
connected, so only the server asked is heard, and what does not echo id and question is ignored (RFC 5452 9).
An ICMP error ends the wait for that server at once.

A try asks the servers in turn: the next one when the one before has failed, has refused, or has kept silent
for its share of the try's time, and then listens to both. The first definite answer ends it; an error code is
given back when no server does better. A try without any answer is repeated.

A server that fails, or is silent while another one answers, is not asked first for `ASIDE_SECONDS`; it is
then asked first again, but until it has answered the next one is asked at the same time. What a pod learns of
its servers is its own: nobody else's questions go elsewhere for what it asked.

Bounds: a query holds at most one socket a server, and `Budget` limits the queries in flight.
"""

import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

import trio

from ztunnel_trio.dns.framing import MessageStream
from ztunnel_trio.dns.resolv_conf import ResolvConf
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.observe.words import os_error_text
from ztunnel_trio.wire.dns import is_answer, is_truncated, message_id, rcode_of, with_id

MAX_DATAGRAM: Final = 65535
# No error, no such name, and what answers an UPDATE (RFC 2136 2.2): another server would not know better.
DEFINITE_RCODES: Final = frozenset({0, 3, 6, 7, 8, 9, 10})


class Via(Enum):
    """How the resolver is asked; a client that can take no more than a datagram gets a truncated answer."""

    UDP = "udp"
    UDP_THEN_TCP = "udp, and over tcp what is truncated"
    TCP = "tcp"


class ClientSockets(Protocol):
    """Sockets made where queries have to come from; `net.sockets.SocketFactory` makes them."""

    def udp(self, family: socket.AddressFamily) -> socket.socket:
        """A non-blocking datagram socket, unbound."""
        ...

    async def connect(self, destination: SocketAddress) -> socket.socket:
        """A non-blocking stream socket, connected."""
        ...


@dataclass(slots=True, eq=False)
class Budget:
    """How many queries may be in flight, here and in the larger budget this one is part of."""

    limit: int
    whole: "Budget | None" = None
    used: int = 0

    def take(self) -> bool:
        """Take a place, to be given back, if there is one."""
        if self.used >= self.limit or (self.whole is not None and not self.whole.take()):
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        """Give back a place taken."""
        self.used -= 1
        if self.whole is not None:
            self.whole.give_back()


ASIDE_SECONDS: Final = 30.0


@dataclass(slots=True, eq=False)
class ServerOrder:
    """In which order to ask some servers, from how they have answered so far. `now` is in seconds."""

    servers: tuple[SocketAddress, ...]
    _aside_until: dict[SocketAddress, float] = field(default_factory=dict)

    def at(self, now: float) -> list[SocketAddress]:
        """All of them: first those that were not set aside lately, each in the order of the file."""
        aside = self._aside_until
        if not aside:
            return list(self.servers)
        return sorted(self.servers, key=lambda server: aside.get(server, now) > now)

    def is_doubted(self, server: SocketAddress) -> bool:
        """Whether it has failed and has not answered since."""
        return server in self._aside_until

    def has_answered(self, server: SocketAddress) -> None:
        """It works."""
        if self._aside_until:
            self._aside_until.pop(server, None)

    def has_failed(self, server: SocketAddress, now: float) -> None:
        """It does not: an error, or silence where another one has answered."""
        self._aside_until[server] = now + ASIDE_SECONDS


def _random_id() -> int:
    return secrets.randbits(16)


@dataclass(slots=True, eq=False)
class Forwarder:
    """Asks the resolvers of a resolv.conf through one workload's sockets."""

    sockets: ClientSockets
    conf: ResolvConf
    new_id: Callable[[], int] = _random_id
    order: ServerOrder = field(init=False)

    def __post_init__(self) -> None:
        self.order = ServerOrder(tuple(self.conf.servers))

    async def exchange(self, query: bytes, via: Via) -> bytes:
        """The answer to a message of 12 bytes or more, under the message's own id.

        Raises:
            Unavailable: no server answered in time.
        """
        asked = with_id(query, self.new_id())
        failures: list[str] = []
        for _ in range(1 + self.conf.attempts):
            one = _Try(self, asked, via, failures)
            with trio.move_on_after(self.conf.timeout_seconds) as scope:
                await one.run()
            if one.best is not None:
                return with_id(one.best, message_id(query))
            if scope.cancelled_caught:
                failures.append("request timed out")
        raise Unavailable(failures[-1])

    async def ask(self, server: SocketAddress, query: bytes, via: Via) -> bytes:
        """One server's answer, however long it takes.

        Raises:
            OSError, trio.BrokenResourceError, PeerBrokeProtocol: the connection failed or ended.
        """
        if via is Via.TCP:
            return await self._ask_tcp(server, query)
        reply = await self._ask_udp(server, query)
        if via is Via.UDP_THEN_TCP and is_truncated(reply):
            return await self._ask_tcp(server, query)
        return reply

    async def _ask_udp(self, server: SocketAddress, query: bytes) -> bytes:
        family = socket.AF_INET if server.ip.version == 4 else socket.AF_INET6
        with closing(self.sockets.udp(family)) as sock:
            sock.connect((str(server.ip), server.port))
            sock.send(query)
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    reply = sock.recv(MAX_DATAGRAM)
                except BlockingIOError:
                    continue
                if is_answer(reply, query):
                    return reply

    async def _ask_tcp(self, server: SocketAddress, query: bytes) -> bytes:
        sock = await self.sockets.connect(server)
        stream = MessageStream(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
        try:
            await stream.send(query)
            while reply := await stream.receive():
                if is_answer(reply, query):
                    return reply
        finally:
            sock.close()
        raise PeerBrokeProtocol("connection ended without an answer")


@dataclass(slots=True, eq=False)
class _Try:
    """One round over the servers."""

    forwarder: Forwarder
    query: bytes
    via: Via
    failures: list[str]
    best: bytes | None = None
    unheard: list[SocketAddress] = field(default_factory=list)  # asked, and neither answered nor failed

    async def run(self) -> None:
        """Return with the first definite answer, or when every server has had its say."""
        order = self.forwarder.order
        servers = order.at(trio.current_time())
        if len(servers) == 1:
            await self._hear(servers[0])
            return
        share = self.forwarder.conf.timeout_seconds / len(servers)
        async with trio.open_nursery() as nursery:
            for server in servers:
                finished = trio.Event()
                self.unheard.append(server)
                nursery.start_soon(self._hear_among, server, finished, nursery.cancel_scope)
                with trio.move_on_after(0 if order.is_doubted(server) else share):
                    await finished.wait()

    async def _hear_among(
        self, server: SocketAddress, finished: trio.Event, others: trio.CancelScope
    ) -> None:
        order = self.forwarder.order
        if await self._hear(server):
            order.has_answered(server)
            first = self.unheard[0]
            if first != server:  # the one that was asked before is silent
                order.has_failed(first, trio.current_time())
            others.cancel(reason="another server has answered")
        else:
            self.unheard.remove(server)
        finished.set()

    async def _hear(self, server: SocketAddress) -> bool:
        """Ask one server and keep what is worth keeping; whether its answer is definite."""
        try:
            reply = await self.forwarder.ask(server, self.query, self.via)
        except OSError as error:
            self.failures.append(f"io error: {os_error_text(error)}")
            self.forwarder.order.has_failed(server, trio.current_time())
            return False
        except (PeerBrokeProtocol, trio.BrokenResourceError) as error:
            self.failures.append(f"io error: {error}")
            self.forwarder.order.has_failed(server, trio.current_time())
            return False
        if rcode_of(reply) in DEFINITE_RCODES:
            self.best = reply
            return True
        if self.best is None:
            self.best = reply
        return False
