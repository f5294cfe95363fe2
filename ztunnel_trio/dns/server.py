"""The DNS server of one workload: UDP and TCP on port 15053 of its pod.

Whoever asks is the workload the server was made for; the packet's source only says where the answer goes. A
question of the mesh is answered on the spot, without a task: read, looked up among the answers already
encoded, sent. `_Answers` keeps them until the mesh's revision changes. Everything else becomes a task that
asks the resolver upstream; the budget of queries in flight bounds those, over it the answer is SERVFAIL.

A drain closes the ports at once; queries in flight and the message a TCP client is in the middle of get the
grace period.
"""

import logging
import socket
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Final, Protocol, Self

import trio

from ztunnel_trio.decide.answer import (
    Addresses,
    Empty,
    Forward,
    NamedServices,
    NameSettings,
    Verdict,
    answer,
)
from ztunnel_trio.dns.forward import Budget, Forwarder, Via
from ztunnel_trio.dns.framing import MessageStream
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.facts.network import DNS_PORT
from ztunnel_trio.model.address import IPAddress, SocketAddress
from ztunnel_trio.model.workload import Workload, WorkloadInfo
from ztunnel_trio.net.listener import Listener
from ztunnel_trio.net.sockets import SocketFactory
from ztunnel_trio.observe.log import span
from ztunnel_trio.supervise.drain import Drain
from ztunnel_trio.wire.dns import (
    AAAA,
    AXFR,
    IXFR,
    TCP_LIMIT,
    UDP_LIMIT,
    A,
    EncodedAnswer,
    Found,
    OtherOperation,
    Query,
    Rcode,
    Request,
    Unanswerable,
    answer_count,
    cut_to,
    encode_answer,
    encode_query,
    error_reply,
    name_text,
    parse_name,
    rcode_of,
    read_addresses,
    read_request,
    type_text,
)

log = logging.getLogger("ztunnel::dns::server")
access_log = logging.getLogger("dns")

LOCALHOSTS: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
BURST: Final = 32  # datagrams between two turns of everybody else
MAX_DATAGRAM: Final = 65535
LONG_QUERY: Final = 1232  # what crosses every network in one datagram (DNS Flag Day 2020)
UNKNOWN: Final = "unknown"

Source = tuple[str, int] | tuple[str, int, int, int]
"""Where a datagram came from, as the socket module has it; handed back to it unread."""


class ClientMesh(NamedServices, Protocol):
    """The mesh as this server asks it; `mesh.mesh.Mesh` is one."""

    @property
    def revision(self) -> int:
        """Another one after every change."""
        ...

    def local_workload(self, info: WorkloadInfo) -> Workload | None:
        """The record of a pod of this node."""
        ...


class LiveMesh(Protocol):
    """The mesh that changes; `live_mesh.LiveMesh` is one."""

    @property
    def mesh(self) -> ClientMesh: ...

    async def local_workload(self, info: WorkloadInfo, *, seconds: float = ...) -> Workload | None:
        """The record of a pod of this node, waiting for it."""
        ...


class DnsMetrics(Protocol):
    """What is counted; labels are query type, protocol, source's canonical service and revision."""

    def dns_request(self, labels: Sequence[str]) -> None: ...

    def dns_upstream_request(self, labels: Sequence[str]) -> None: ...

    def dns_upstream_failure(self, labels: Sequence[str]) -> None: ...

    def dns_upstream_duration(self, labels: Sequence[str], seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsSettings:
    """Limits and times of one server, and how names are read."""

    names: NameSettings = field(default_factory=NameSettings)
    idle_seconds: float = 5.0  # ztunnel src/dns/server.rs, between two messages of a TCP connection
    local_workload_seconds: float = 5.0  # ztunnel src/state.rs, the wait for the workload's own record
    connections: int = 128  # TCP connections at once; one more is closed
    in_flight: int = 256  # queries that wait for somebody else; one more is SERVFAIL
    kept_answers: int = 512  # encoded answers


@dataclass(frozen=True, slots=True)
class Localhost:
    """The default address: 127.0.0.1 and, where the pod has IPv6, ::1."""

    port: int = DNS_PORT


@dataclass(frozen=True, slots=True)
class DnsSockets:
    """The bound sockets of one server; owned by whoever runs it, until then by who bound them."""

    udp: tuple[socket.socket, ...]
    tcp: tuple[Listener, ...]

    def close(self) -> None:
        """Close them all. Closing twice changes nothing."""
        for sock in self.udp:
            sock.close()
        for listener in self.tcp:
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bind(factory: SocketFactory, address: Localhost | SocketAddress, *, ipv6: bool) -> DnsSockets:
    """Bind UDP and TCP inside the pod. `ipv6` is the process's switch; the pod's loopback may lack it too.

    Raises:
        BindFailed: an address is taken; nothing stays bound.
    """
    if isinstance(address, SocketAddress):
        addresses = [address]
    else:
        families = 2 if ipv6 and factory.has_ipv6_loopback() else 1
        addresses = [SocketAddress(ip, address.port) for ip in LOCALHOSTS[:families]]
    with ExitStack() as undo:
        udp, tcp = [], []
        for one in addresses:
            udp.append(factory.listen_udp(one))
            undo.callback(udp[-1].close)
            tcp.append(factory.listen_tcp(one))
            undo.callback(tcp[-1].close)
        undo.pop_all()
    return DnsSockets(tuple(udp), tuple(tcp))


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a question came to: the verdict and, if the mesh answers, the answer encoded."""

    verdict: Verdict
    encoded: EncodedAnswer | None
    labels: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Answers:
    """Answers by everything in a query that shapes them, of one revision of the mesh; bounded."""

    most: int
    revision: int = -1
    client: Workload | None = None
    kept: OrderedDict[tuple[object, ...], _Kept] = field(default_factory=OrderedDict)

    def get(self, key: tuple[object, ...]) -> _Kept | None:
        found = self.kept.get(key)
        if found is not None:
            self.kept.move_to_end(key)
        return found

    def put(self, key: tuple[object, ...], value: _Kept) -> None:
        if len(self.kept) >= self.most:
            self.kept.popitem(last=False)
        self.kept[key] = value

    def start_over(self, revision: int, client: Workload | None) -> None:
        self.revision, self.client = revision, client
        self.kept.clear()


class DnsServer:
    """Answers one workload's questions. Owns its sockets from construction, closes them when `run` ends."""

    def __init__(
        self,
        *,
        sockets: DnsSockets,
        live: LiveMesh,
        client: WorkloadInfo,
        forwarder: Forwarder,
        settings: DnsSettings,
        metrics: DnsMetrics,
        rng: Random,
        budget: Budget | None = None,
    ) -> None:
        """`budget`: the process's queries in flight, of which this server may use `settings.in_flight`."""
        self._sockets = sockets
        self._live = live
        self._info = client
        self._forwarder = forwarder
        self._settings = settings
        self._metrics = metrics
        self._rng = rng
        self._budget = Budget(settings.in_flight, budget)
        self._connections = 0
        self._idle: set[trio.CancelScope] = set()
        self._answers = _Answers(settings.kept_answers)

    async def run(
        self, drain: Drain, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until drained or cancelled."""
        with self._sockets, span("dns_proxy", wl=f"{self._info.namespace}/{self._info.name}"):
            async with trio.open_nursery() as in_flight:
                await self._accept(drain, in_flight, task_status)
                in_flight.cancel_scope.deadline = drain.deadline
                for scope in self._idle:
                    scope.cancel(reason="draining")
            log.info("dns server drained")

    def close(self) -> None:
        """Give the sockets back without having run."""
        self._sockets.close()

    async def resolve(self, name: str, ipv6: bool) -> list[IPAddress]:
        """The addresses of a name as this workload would be told them, none if there are none."""
        client = await self._client()
        if client is None:
            return []
        record_type = AAAA if ipv6 else A
        try:
            query = encode_query(0, parse_name(name), record_type, edns=True)
        except PeerBrokeProtocol:
            return []
        request = read_request(query)
        if not isinstance(request, Query):
            return []
        kept = self._decide(request, client, "udp", UDP_LIMIT)
        self._metrics.dns_request(kept.labels)
        self._record(request, client, kept.verdict)
        match kept.verdict:
            case Addresses(addresses=addresses):
                return self._rng.sample(addresses, len(addresses))
            case Empty():
                return []
            case Forward():
                return await self._resolve_upstream(query, request, kept.labels, client)

    # ports

    async def _accept(
        self, drain: Drain, in_flight: trio.Nursery, task_status: trio.TaskStatus[None]
    ) -> None:
        """Take what comes, until the drain; then nothing more."""
        async with trio.open_nursery() as accepting:
            for sock in self._sockets.udp:
                accepting.start_soon(self._serve_udp, sock, in_flight)
            for listener in self._sockets.tcp:
                accepting.start_soon(self._accept_tcp, listener, in_flight, drain)
            addresses = ", ".join(str(listener.address) for listener in self._sockets.tcp)
            log.info(
                "starting local DNS server", extra={"fields": {"address": addresses, "component": "dns"}}
            )
            task_status.started()
            await drain.requested.wait()
            log.info("shutting down the DNS server")
            accepting.cancel_scope.cancel(reason="draining")

    async def _accept_tcp(self, listener: Listener, in_flight: trio.Nursery, drain: Drain) -> None:
        while True:
            accepted = await listener.accept()
            in_flight.start_soon(self._serve_tcp, accepted.sock, drain)

    async def _serve_udp(self, sock: socket.socket, in_flight: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(BURST):
                try:
                    datagram, source = sock.recvfrom(MAX_DATAGRAM)
                except BlockingIOError:
                    break
                except OSError as error:  # an ICMP error about an earlier answer: that client is gone
                    log.debug("receive: %s", error)
                    continue
                if source[1] != 0:  # nobody can be answered at port 0
                    self._receive(datagram, source, sock, in_flight)

    def _receive(self, datagram: bytes, source: Source, sock: socket.socket, in_flight: trio.Nursery) -> None:
        """Answer a datagram at once, or start the task that will."""
        request = read_request(datagram)
        if request is None:
            return
        limit = request.udp_limit if isinstance(request, Query) else UDP_LIMIT
        reply = self._answer_now(request, "udp", limit)
        if reply is not None:
            _send(sock, reply, source)
        elif not isinstance(request, Unanswerable):
            if self._budget.take():
                in_flight.start_soon(self._answer_datagram, datagram, request, source, sock)
            else:
                _send(sock, self._refuse(request, "udp"), source)

    async def _answer_datagram(
        self, datagram: bytes, request: Query | OtherOperation, source: Source, sock: socket.socket
    ) -> None:
        try:
            limit = request.udp_limit if isinstance(request, Query) else UDP_LIMIT
            reply = await self._answer_later(datagram, request, "udp", Via.UDP, limit)
        finally:
            self._budget.give_back()
        _send(sock, cut_to(reply, limit), source)

    async def _serve_tcp(self, sock: socket.socket, drain: Drain) -> None:
        """One connection: its messages one after the other, until it ends, idles, or the server drains."""
        if self._connections >= self._settings.connections:
            sock.close()
            return
        self._connections += 1
        try:
            stream = MessageStream(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
            await self._serve_messages(stream, drain)
        except (trio.BrokenResourceError, PeerBrokeProtocol) as error:
            log.debug("connection: %s", error)
        finally:
            self._connections -= 1
            sock.close()

    async def _serve_messages(self, stream: MessageStream, drain: Drain) -> None:
        while not drain.is_requested:
            message = None
            with trio.move_on_after(self._settings.idle_seconds) as idle:
                self._idle.add(idle)
                try:
                    message = await stream.receive()
                finally:
                    self._idle.discard(idle)
            request = None if message is None else read_request(message)
            if message is None or request is None:
                return
            reply = await self._answer_message(message, request)
            with trio.move_on_after(self._settings.idle_seconds) as sending:
                await stream.send(reply)
            if sending.cancelled_caught:
                return

    async def _answer_message(self, message: bytes, request: Request) -> bytes:
        reply = self._answer_now(request, "tcp", TCP_LIMIT)
        if reply is not None:
            return reply
        assert not isinstance(request, Unanswerable)
        if not self._budget.take():
            return self._refuse(request, "tcp")
        try:
            is_transfer = isinstance(request, Query) and request.type in (AXFR, IXFR)
            via = Via.TCP if is_transfer or len(message) > LONG_QUERY else Via.UDP_THEN_TCP
            return await self._answer_later(message, request, "tcp", via, TCP_LIMIT)
        finally:
            self._budget.give_back()

    # answers

    def _answer_now(self, request: Request, protocol: str, limit: int) -> bytes | None:
        """The answer, if nobody has to be waited for."""
        if isinstance(request, Unanswerable):
            return request.reply
        client = self._client_now()
        if client is None or isinstance(request, OtherOperation):
            return None
        kept = self._decide(request, client, protocol, limit)
        if kept.encoded is None:
            return None
        self._metrics.dns_request(kept.labels)
        self._record(request, client, kept.verdict)
        return kept.encoded.message(request.id, self._rng)

    async def _answer_later(
        self, message: bytes, request: Query | OtherOperation, protocol: str, via: Via, limit: int
    ) -> bytes:
        """The answer of whoever knows it: the mesh once it knows the client, else the resolver upstream."""
        client = await self._client()
        if client is None:
            log.debug("unknown source: %s", self._info)
            return self._refuse(request, protocol)
        reply = self._answer_now(request, protocol, limit)
        if reply is not None:
            return reply
        labels = _labels(request, protocol, client)
        self._metrics.dns_request(labels)
        return await self._forward(message, request, via, labels, client)

    def _refuse(self, request: Query | OtherOperation, protocol: str) -> bytes:
        """SERVFAIL: the client is not known, or too much is in flight."""
        self._metrics.dns_request(_labels(request, protocol, self._client_now()))
        return error_reply(request, Rcode.SERVFAIL)

    async def _forward(
        self,
        message: bytes,
        request: Query | OtherOperation,
        via: Via,
        labels: tuple[str, ...],
        client: Workload,
    ) -> bytes:
        self._metrics.dns_upstream_request(labels)
        began = trio.current_time()
        try:
            reply = await self._forwarder.exchange(message, via)
        except Unavailable as error:
            self._metrics.dns_upstream_failure(labels)
            self._write(request, client, f"forwarding failed ({error})", 0)
            return error_reply(request, Rcode.SERVFAIL)
        finally:
            self._metrics.dns_upstream_duration(labels, trio.current_time() - began)
        count = answer_count(reply)
        if rcode_of(reply) or (not count and isinstance(request, Query)):
            self._metrics.dns_upstream_failure(labels)
            self._write(request, client, f"forwarding failed (response code {rcode_of(reply)})", 0)
        else:
            self._write(request, client, "forwarded", count)
        return reply

    async def _resolve_upstream(
        self, query: bytes, request: Query, labels: tuple[str, ...], client: Workload
    ) -> list[IPAddress]:
        if not self._budget.take():
            return []
        try:
            reply = await self._forward(query, request, Via.UDP_THEN_TCP, labels, client)
            found = read_addresses(reply)
        except PeerBrokeProtocol as error:
            log.debug("upstream: %s", error)
            return []
        finally:
            self._budget.give_back()
        return list(found.addresses) if isinstance(found, Found) else []

    def _decide(self, query: Query, client: Workload, protocol: str, limit: int) -> _Kept:
        """What the mesh says, encoded; from the answers kept if the same was asked of the same mesh."""
        key = (query.question, query.edns, query.flags, protocol)
        kept = self._answers.get(key)
        if kept is not None:
            return kept
        verdict: Verdict = Forward()
        if query.type in (A, AAAA):
            names, version = self._settings.names, 4 if query.type == A else 6
            verdict = answer(query.name, version=version, client=client, mesh=self._live.mesh, settings=names)
            for note in verdict.notes:
                log.debug("%s", note)
        encoded = None
        if isinstance(verdict, Addresses):
            encoded = encode_answer(query, verdict.addresses, alias_of=verdict.alias_of, limit=limit)
        elif isinstance(verdict, Empty):
            encoded = encode_answer(query, (), limit=limit)
        kept = _Kept(verdict, encoded, _labels(query, protocol, client))
        self._answers.put(key, kept)
        return kept

    def _client_now(self) -> Workload | None:
        """The workload served, if the mesh knows it; what was kept of an older mesh is forgotten."""
        answers, mesh = self._answers, self._live.mesh
        if answers.revision != mesh.revision:
            answers.start_over(mesh.revision, mesh.local_workload(self._info))
        return answers.client

    async def _client(self) -> Workload | None:
        """The workload served, waiting for the mesh to know it."""
        client = self._client_now()
        if client is not None:
            return client
        await self._live.local_workload(self._info, seconds=self._settings.local_workload_seconds)
        return self._client_now()

    # what operators see

    def _record(self, query: Query, client: Workload, verdict: Verdict) -> None:
        """The log line of an answer of the mesh."""
        match verdict:
            case Addresses(addresses=addresses, alias_of=alias):
                self._write(query, client, "success", len(addresses) + (alias is not None))
            case Empty(why=why):
                self._write(query, client, why.value, 0)
            case Forward():
                pass  # has its line when the answer is there

    def _write(self, request: Query | OtherOperation, client: Workload, result: str, endpoints: int) -> None:
        if not access_log.isEnabledFor(logging.DEBUG):
            return
        known = request if isinstance(request, Query) else None
        fields = {
            "src.workload": client.name,
            "src.namespace": client.namespace,
            "query": type_text(known.type) if known else UNKNOWN,
            "domain": name_text(known.name) if known else UNKNOWN,
            "result": result,
            "endpoints": endpoints,
        }
        access_log.debug("", extra={"fields": fields})


def _labels(request: Query | OtherOperation, protocol: str, client: Workload | None) -> tuple[str, ...]:
    """The labels of `DnsMetrics`, in their order."""
    record_type = type_text(request.type).lower() if isinstance(request, Query) else UNKNOWN
    service = (client and client.canonical_name) or UNKNOWN
    revision = (client and client.canonical_revision) or UNKNOWN
    return record_type, protocol, service, revision


def _send(sock: socket.socket, reply: bytes, destination: Source) -> None:
    """Send a datagram if it can be sent now: a client asks again for one that is lost."""
    try:
        sock.sendto(reply, destination)
    except OSError as error:
        log.debug("send: %s", error)
